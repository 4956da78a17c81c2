"""LLM: load a model and generate offline, with vLLM's names; `stream` also yields outputs as tokens come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from os import PathLike, fspath
from typing import Any

from octavo.config import ContentFormat, EngineConfig
from octavo.engine.assemble import build_engine
from octavo.engine.beam_search import BeamSearchOutput, BeamSearchParams, beam_output, checked_beam_params
from octavo.engine.calls import (
    Message,
    conversation_list,
    lora_list,
    missing_attribute,
    not_to_be_copied,
    params_list,
    priority_list,
    prompt_list,
    refuse_unknown,
    requests_of,
    template_options,
)
from octavo.engine.core_protocol import EngineStats
from octavo.engine.engine_args import EngineArgs
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.options import engine_config
from octavo.engine.pooling_calls import Adapters, PoolingCalls
from octavo.engine.progress import Progress
from octavo.engine.turns import EngineTurns, OutputStream
from octavo.errors import ConfigError, TokenizerError
from octavo.observe.event_log import EventLog
from octavo.observe.exposition import Metric, Metrics
from octavo.observe.metrics import EngineMetrics
from octavo.observe.recorder import open_new
from octavo.outputs import RequestOutput
from octavo.request import ModelInfo, Request
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.session import Session
from octavo.text.tokenizer import Tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None
Priority = int | Sequence[int] | None


class LLM(PoolingCalls):
    """One model, ready to generate.

    model: a Hugging Face folder or hub id, a .gguf file, or a packaged model's name ("smollm2").
    options: any field of the sections in `octavo/config.py`, by name: dtype, max_model_len, max_num_seqs,
        kv_cache_memory_bytes, backend, ... vLLM's other options are accepted if they ask for nothing
        (decode_context_parallel_size=1).
    Raises ConfigError, ModelLoadError, OutOfMemoryError, BackendUnavailableError.

    Safe to use from several threads: their requests run together in one batch, each call gets its own outputs, and a
    stream that is read slowly, or dropped, delays no other. Calls inside a stream's loop are allowed. After `close`,
    calls that wait raise EngineDeadError.
    """

    def __init__(self, /, model: str, *, disable_log_stats: bool | None = True, **options: Any) -> None:
        """disable_log_stats: False collects metrics for `get_metrics`; short steps get a few percent slower."""
        disable_log_stats = True if disable_log_stats is None else disable_log_stats
        if not isinstance(disable_log_stats, bool):
            raise ConfigError(f"disable_log_stats is {disable_log_stats!r}, allowed are True and False")
        config = engine_config(model=model, **options)
        self._engine = engine = _several(config) if config.backend.data_parallel_size > 1 else build_engine(config)
        self._turns = EngineTurns(engine)
        self._metrics: Metrics | None = None
        if not disable_log_stats:
            is_kept = engine.records is None and engine.events.is_on
            self._metrics = EngineMetrics(engine.events, model_name=str(model)) if is_kept else engine.records
        self._model = str(model)
        self._counter = itertools.count()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        """An LLM with these options; vLLM's way to make one."""
        return cls(**vars(engine_args))

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt] | None = None,
        sampling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        lora_request: Adapters = None,
        priority: Priority = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Complete every prompt; outputs come in the order of the prompts.

        prompts: text, token ids, or a dict (`prompt` or `prompt_token_ids`, `cache_salt`); one or several.
        sampling_params: one for all, one per prompt, or None for the model's defaults.
        use_tqdm: whether to show a progress bar if standard error is a terminal; or what makes a bar, such as tqdm.
        lora_request: the adapter to compute with, one for all or one per prompt, which may be None (docs/lora.md).
        priority: one for all or one per prompt, lower first. others: vLLM's arguments, at values that ask for nothing.
        Raises InvalidRequestError before anything runs if any prompt cannot be served.
        """
        if others:
            refuse_unknown(LLM.generate, others)
        requests = self._make(prompts, sampling_params, priority, RequestOutputKind.FINAL_ONLY, lora_request)
        return self._finished(requests, use_tqdm)

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: Params = None,
        *,
        lora_request: Adapters = None,
        priority: Priority = None,
        **others: Any,
    ) -> Iterator[RequestOutput]:
        """Complete every prompt, yielding a RequestOutput whenever a request has new tokens.

        The parameters' output_kind chooses what each output holds. `request_id` ends in the prompt's index: that of
        prompts[3] is "<call>-3". Prompts are checked now and queued when the first output is asked for; leaving the
        loop early aborts the requests that still run. Several streams may be read in turns, or by threads. A reader
        slower than the engine gets only the newest CUMULATIVE output, but every DELTA output.
        """
        if others:
            refuse_unknown(LLM.stream, others)
        return OutputStream(self._turns, self._make(prompts, sampling_params, priority, None, lora_request))

    def chat(
        self,
        messages: str | Message | Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        lora_request: Adapters = None,
        priority: Priority = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, through the model's chat template. A text, or one message, is
        a conversation too. chat_template_content_format: overrides the engine's option for this call."""
        if others:
            refuse_unknown(LLM.chat, others)
        options = template_options(
            chat_template_kwargs,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )
        prompts = [self.get_tokenizer().encode_chat(one, **options) for one in conversation_list(messages)]
        return self.generate(prompts, sampling_params, use_tqdm, lora_request=lora_request, priority=priority)

    def session(self, prompt: Prompt, *, cache_salt: str | None = None) -> Session:
        """A prompt that is continued in branches, which can be forked, extended and pruned; see Session."""
        return Session(self._engine, self._turns, self._make, prompt, cache_salt)

    def beam_search(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: BeamSearchParams,
        use_tqdm: bool | Callable[..., Any] = False,
        *,
        lora_request: Adapters = None,
        priority: Priority = None,
        **others: Any,
    ) -> list[BeamSearchOutput]:
        """The beam_width likeliest answers that a beam search finds for each prompt, best first."""
        if others:
            refuse_unknown(LLM.beam_search, others)
        chosen = checked_beam_params(params).sampling_params(self._engine.limits.max_logprobs)
        outputs = self.generate(prompts, chosen, use_tqdm, lora_request=lora_request, priority=priority)
        return [beam_output(one, params, self._engine.tokenizer) for one in outputs]

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError after skip_tokenizer_init=True."""
        if self._engine.tokenizer is None:
            raise TokenizerError("there is no tokenizer: the engine was made with skip_tokenizer_init=True")
        return self._engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation config recommends, else vLLM's defaults. A copy, which you may change."""
        return self._engine.default_sampling_params.clone()

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; running requests keep theirs."""
        return self._turns.ask(lambda engine: engine.core.reset_prefix_cache())

    def get_metrics(self) -> list[Metric]:
        """The current value of every metric: Counter, Gauge and Histogram, with vLLM's names (`vllm:...`). As in vLLM,
        the LLM must be made with disable_log_stats=False."""
        metrics = self._metrics
        if metrics is None:
            raise ConfigError(
                "metrics are not kept: make the LLM with disable_log_stats=False, and event_log_size 1 or more"
            )
        return self._turns.ask(lambda engine: metrics.values())

    @property
    def events(self) -> EventLog:
        """Everything the engine did, in order. Raises ConfigError with data_parallel_size: each engine has its own."""
        if self._engine.records is not None:
            raise ConfigError(
                "each of several engines has its own events: save_events and record write them into files"
            )
        return self._engine.events

    @property
    def model_info(self) -> ModelInfo:
        """What the loaded model takes: max_model_len, max_num_seqs, vocab_size, eos_token_ids and more."""
        return ModelInfo.of(self._engine.limits, self._engine.default_sampling_params, self._engine.card)

    @property
    def card(self) -> list[tuple[str, str]]:
        """The start-up card: model, weights, KV blocks, backend and why, as (label, text) lines."""
        return self._engine.card

    def memory(self) -> dict[str, int]:
        """Bytes of each part of the memory of all engines, measured now; docs/memory.md explains the parts."""
        return self._turns.ask(lambda engine: dict(engine.measure()))

    def stats(self) -> EngineStats:
        return self._turns.ask(lambda engine: engine.core.stats())

    def save_events(self, path: str | PathLike[str]) -> None:
        """Write the last events into a file for `octavo viz`, `explain` and `replay`. A log that is there is kept as
        PATH.before; ConfigError: something else is, or it cannot be written. Several engines have a file each: PATH,
        PATH.1, ..."""
        if self._engine.recorder is not None:
            self._engine.recorder.save(fspath(path))
        if (records := self._engine.records) is not None:
            for number, log in self._turns.ask(lambda engine: records.answers("events")).items():
                with open_new(f"{fspath(path)}.{number}" if number else fspath(path)) as file:
                    file.write(log)

    def close(self) -> None:
        """Free memory and threads. Any thread may call it. Calls that wait, and later ones, raise EngineDeadError."""
        self._turns.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise not_to_be_copied(self)

    def __repr__(self) -> str:
        return f"LLM({self._model!r})"

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name)

    def _finished(self, requests: list[Request], use_tqdm: bool | Callable[..., Any]) -> list[RequestOutput]:
        """The last output of each request, once all have ended."""
        done: dict[str, RequestOutput] = {}
        stream = OutputStream(self._turns, requests)
        bar = None if use_tqdm is False else Progress(len(requests), self.stats, use_tqdm)
        with closing(stream), bar or nullcontext():
            for output in stream:
                done[output.request_id] = output
                if bar is not None:
                    bar.update(output)
        return [done[request.request_id] for request in requests]

    def _make(
        self,
        prompts: object,
        params: object,
        priority: object,
        output_kind: RequestOutputKind | None,
        lora_request: object = None,
    ) -> list[Request]:
        """Check every prompt, so that a bad one stops the call before anything runs."""
        many = prompt_list(prompts)
        call = next(self._counter)
        params_each = params_list(params, len(many), self.get_default_sampling_params)
        priorities = priority_list(priority, len(many))
        if output_kind is not None:
            params_each = [one.clone(output_kind) for one in params_each]
        adapters = () if lora_request is None else lora_list(lora_request, len(many))
        return requests_of(self._engine.make_request, call, many, params_each, priorities, adapters)


def _several(config: EngineConfig) -> LLMEngine:
    """Several engines, in child processes."""
    from octavo.processes.parallel_engine import build_parallel_engine  # imports what one engine does not need

    return build_parallel_engine(config)
