"""Throughput of a workload in this process: Octavo, and transformers for comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.bench.workloads import Work
from octavo.errors import BackendUnavailableError, ConfigError, ModelLoadError
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams

WARM_UP_LEN = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One engine's throughput on one workload."""

    engine: str
    seconds: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def output_rate(self) -> float:
        """Generated tokens per second, prefill time included."""
        return self.num_output_tokens / self.seconds

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def line(self) -> str:
        return (
            f"{self.engine}: {self.num_requests / self.seconds:.2f} requests/s, "
            f"{self.num_tokens / self.seconds:,.1f} total tokens/s, {self.output_rate:,.1f} output tokens/s "
            f"({self.num_prompt_tokens:,} in, {self.num_output_tokens:,} out, {self.seconds:.2f} s)"
        )

    def record(self) -> dict[str, Any]:
        """The measurement under vLLM's keys."""
        return {
            "engine": self.engine,
            "elapsed_time": self.seconds,
            "num_requests": self.num_requests,
            "total_num_tokens": self.num_tokens,
            "total_output_tokens": self.num_output_tokens,
            "requests_per_second": self.num_requests / self.seconds,
            "tokens_per_second": self.num_tokens / self.seconds,
            "output_tokens_per_second": self.output_rate,
        }


def ratio_line(ours: Measurement, theirs: Measurement) -> str:
    return (
        f"{ours.engine} makes {ours.output_rate / theirs.output_rate:.2f} times the output tokens/s of {theirs.engine}"
    )


def check_lengths(llm: LLM, workload: Sequence[Work]) -> None:
    """Raises ConfigError for a request whose answer would be cut, since the model cannot take it whole."""
    most = llm.model_info.max_model_len
    longest = max(workload, key=lambda work: len(work.prompt_token_ids) + work.output_len)
    num_prompt, num_output = len(longest.prompt_token_ids), longest.output_len
    if num_prompt + num_output > most:
        raise ConfigError(
            f"a request has {num_prompt:,} prompt tokens and {num_output:,} new ones, allowed are {most:,} together "
            "(max_model_len): ask for shorter ones, or raise --max-model-len if the model allows it"
        )


def measure_octavo(llm: LLM, workload: Sequence[Work], temperature: float, name: str = "octavo") -> Measurement:
    """Throughput of a workload. Every request generates exactly its length; nothing is detokenised."""
    check_lengths(llm, workload)
    prompts = [work.prompt_token_ids for work in workload]
    params = [_params(work, temperature) for work in workload]
    backwards = prompts[0][::-1]  # the workload's prompts must not enter the prefix tree
    llm.generate(backwards, params[0].replace(n=1, max_tokens=WARM_UP_LEN), use_tqdm=False)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - begin
    num_output_tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    expected = sum(work.num_output_tokens for work in workload)
    assert num_output_tokens == expected, f"{num_output_tokens} tokens were generated for a workload of {expected}"
    return Measurement(
        engine=name,
        seconds=seconds,
        num_requests=len(workload),
        num_prompt_tokens=sum(len(prompt) for prompt in prompts),
        num_output_tokens=num_output_tokens,
    )


def _params(work: Work, temperature: float) -> SamplingParams:
    return SamplingParams(
        n=work.n, temperature=temperature, ignore_eos=True, max_tokens=work.output_len, detokenize=False
    )


class HuggingFaceModel:
    """The baseline: transformers' generate in static batches, each as slow as its longest request. The model comes from
    a folder, a hub id or a .gguf file, which is dequantised at load."""

    def __init__(self, model: str | Path, dtype: str) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging
        except ImportError as error:
            problem = f"the comparison needs torch and transformers: {error}; run pip install 'octavo[bench]'"
            raise BackendUnavailableError(problem) from None
        self._torch = torch
        logging.disable_progress_bar()
        options: dict[str, Any] = {"dtype": torch.float32 if dtype == "auto" else getattr(torch, dtype)}
        path = Path(model)
        if path.suffix == ".gguf":
            options["gguf_file"] = path.name
            model = path.parent
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(str(model), **options).eval()
        except (OSError, ValueError, ImportError) as error:
            raise ModelLoadError(f"transformers cannot load {model}: {error}") from error

    def measure(self, workload: Sequence[Work], max_batch_size: int, temperature: float) -> Measurement:
        """Run the requests in order, `max_batch_size` sequences at a time."""
        rows = [work for work in workload for _ in range(work.n)]
        self._generate(rows[:1], 2, temperature)
        begin = time.perf_counter()
        num_output_tokens = 0
        for start in range(0, len(rows), max_batch_size):
            batch = rows[start : start + max_batch_size]
            self._generate(batch, max(work.output_len for work in batch), temperature)
            num_output_tokens += sum(work.output_len for work in batch)
        return Measurement(
            engine="hf",
            seconds=time.perf_counter() - begin,
            num_requests=len(workload),
            num_prompt_tokens=sum(len(work.prompt_token_ids) for work in workload),
            num_output_tokens=num_output_tokens,
        )

    def _generate(self, batch: Sequence[Work], output_len: int, temperature: float) -> None:
        """Prompts padded on the left, exactly `output_len` new tokens each."""
        torch = self._torch
        longest = max(len(work.prompt_token_ids) for work in batch)
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        attention_mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, work in enumerate(batch):
            first = longest - len(work.prompt_token_ids)
            input_ids[row, first:] = torch.tensor(work.prompt_token_ids)
            attention_mask[row, first:] = 1
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                min_new_tokens=output_len,
                max_new_tokens=output_len,
                pad_token_id=0,
                **sampling,
            )
        assert made.shape[1] == longest + output_len, "generate did not produce the requested number of tokens"
