"""The baseline: transformers' generate on the same requests, in static batches, each as slow as its longest request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.bench.report import Measurement
from octavo.bench.workloads import Work
from octavo.errors import BackendUnavailableError, ModelLoadError


class HuggingFaceModel:
    """A transformers model from a folder, a hub id or a .gguf file (dequantised at load)."""

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
        assert made.shape[1] == longest + output_len, "generate made another number of tokens than it was asked for"
