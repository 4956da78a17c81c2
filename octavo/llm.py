"""LLM: load a model and generate, offline. vLLM's names; plus `stream`, which hands tokens out as they come."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from octavo.config import ContentFormat
from octavo.engine.assemble import build_engine, engine_config
from octavo.engine.core import EngineStats
from octavo.engine.input import Prompt
from octavo.engine.progress import Progress
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequestError, TokenizerError
from octavo.observe.events import EventLog
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind, SamplingParams

Message = Mapping[str, Any]
T = TypeVar("T")


class LLM:
    """One model, ready to generate.

    model: a Hugging Face folder or hub id, a .gguf file, or a packaged model's name ("smollm2").
    options: any field of the sections in `octavo/config.py`, by name: dtype, max_model_len, max_num_seqs,
        kv_cache_memory_bytes, backend, ...
    Raises ConfigError, ModelLoadError, OutOfMemoryError, BackendUnavailableError.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._engine = build_engine(engine_config(model=model, **options))
        self._counter = itertools.count()
        self._boxes: dict[str, deque[RequestOutput]] = {}  # request id -> where its call reads

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; outputs come in the order of the prompts.

        prompts: text, token ids, or a dict (`prompt` or `prompt_token_ids`, `cache_salt`); one or a list.
        sampling_params: one for all, one a prompt, or None for the model's defaults.
        use_tqdm: show a progress bar where standard error is a terminal. priority: one a prompt, lower first.
        Raises InvalidRequestError before anything runs if any prompt cannot be served.
        """
        prompt_list = _as_list(prompts)
        requests = self._make(prompt_list, sampling_params, priority, RequestOutputKind.FINAL_ONLY)
        done: dict[str, RequestOutput] = {}
        with Progress(len(prompt_list), self._engine.stats, is_shown=use_tqdm) as progress:
            for output in self._run(requests):
                progress.update(output)
                done[output.request_id] = output
        return [done[request.request_id] for request in requests]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete every prompt, yielding a RequestOutput whenever a request has new tokens.

        output_kind of the parameters says what each holds. `request_id` ends in the prompt's index: that of
        prompts[3] is "<call>-3". Prompts are checked now and queued when the first output is asked for; leaving
        the loop early aborts what still runs. Several streams may be read in turns.
        """
        return self._run(self._make(_as_list(prompts), sampling_params, priority, None))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, through the model's chat template.

        chat_template_content_format: in place of the option of that name, for this call.
        """
        conversations: list[Sequence[Message]] = (
            [messages] if messages and isinstance(messages[0], Mapping) else list(messages)  # type: ignore[arg-type,list-item]
        )
        prompts: list[Prompt] = [
            self._tokenizer().encode_chat(
                conversation,
                chat_template=chat_template,
                chat_template_content_format=chat_template_content_format,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError after skip_tokenizer_init=True."""
        return self._tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation config recommends, vLLM's defaults elsewhere."""
        return self._engine.default_sampling_params

    @property
    def events(self) -> EventLog:
        """Everything the engine did, in order."""
        return self._engine.events

    @property
    def card(self) -> list[tuple[str, str]]:
        """The start-up card: model, weights, KV blocks, backend and why, as (label, text) lines."""
        return self._engine.card

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        """Give back memory and threads. Later calls raise EngineDeadError."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        output_kind: RequestOutputKind | None,
    ) -> list[Request]:
        """Check every prompt, so that a bad one stops the call before anything runs."""
        call = next(self._counter)
        params_list = _one_each("sampling_params", params, len(prompts), self.get_default_sampling_params())
        priorities = _one_each("priority", priority, len(prompts), 0)
        requests = []
        for index, (prompt, one, level) in enumerate(zip(prompts, params_list, priorities, strict=True)):
            chosen = one if output_kind is None else one.replace(output_kind=output_kind)
            try:
                requests.append(self._engine.make_request(f"{call}-{index}", prompt, chosen, level))
            except InvalidRequestError as refusal:
                if len(prompts) == 1:
                    raise
                raise InvalidRequestError(f"prompts[{index}]: {refusal}") from None
        return requests

    def _run(self, requests: list[Request]) -> Iterator[RequestOutput]:
        """Turn the engine until these requests are done. A step may bring other calls' outputs: they wait in
        those calls' boxes."""
        box: deque[RequestOutput] = deque()
        waiting: set[str] = set()
        try:
            for request in requests:
                self._engine.add_request(request)
                waiting.add(request.request_id)
                self._boxes[request.request_id] = box
            while waiting:
                while box:
                    output = box.popleft()
                    if output.finished:
                        waiting.discard(output.request_id)
                    yield output
                for output in self._engine.step() if waiting else ():
                    if output.request_id in self._boxes:  # else its stream was left, and this is the abort's echo
                        self._boxes[output.request_id].append(output)
        finally:
            for request_id in waiting:
                self._engine.abort_request(request_id)
            for request in requests:
                self._boxes.pop(request.request_id, None)

    def _tokenizer(self) -> Tokenizer:
        if self._engine.tokenizer is None:
            raise TokenizerError("there is no tokenizer: the engine was made with skip_tokenizer_init=True")
        return self._engine.tokenizer


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: text, a dict and a list of ints are one."""
    if isinstance(prompts, (str, Mapping)) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _one_each(name: str, values: T | Sequence[T] | None, count: int, default: T) -> list[T]:
    """One value for all, or one each."""
    if values is None:
        return [default] * count
    if not isinstance(values, Sequence):
        return [values] * count
    if len(values) != count:
        raise InvalidRequestError(
            f"{name} holds {len(values)} values for {count} prompts, allowed are one, or one each"
        )
    return list(values)
