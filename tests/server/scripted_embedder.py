"""A scripted engine that embeds or classifies: a text's numbers are its length, its first token and its last one, and
a token's are its id, again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np

from octavo.engine.llm_engine import GenerateCall
from octavo.engine.pooled import PoolingInput
from octavo.lora_request import LoRARequest
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.pooling_params import PooledForm
from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams
from tests.server.scripted_engine import LIMITS, ScriptedEngine

EMBEDS = PooledForm(size=3, normalizes=False)


class ScriptedEmbedder(ScriptedEngine):
    def __init__(
        self,
        fault: str | None = None,
        factor: float = 1.0,
        form: PooledForm = EMBEDS,
        adapters: tuple[LoRARequest, ...] = (),
    ) -> None:
        """fault: what every request ends with. factor: of all numbers. form: what it gives."""
        super().__init__()
        self.loaded = adapters
        self.factor = factor
        self.embedding_fault = fault
        self.form = form
        self.inputs = PoolingInput(self.tokenizer, replace(LIMITS, pooled=form, enable_lora=bool(adapters)), seed=0)

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo.of(self.inputs.limits, SamplingParams(), [])

    async def adapters(self) -> list[LoRARequest]:
        return list(self.loaded)

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        assert call.sampling_params is not None
        assert call.request_id is not None
        more = call.priority, call.cache_salt, call.lora_request
        request = self.inputs.process(call.request_id, call.prompt, call.sampling_params, 0.0, *more)
        self.requests.append(request)
        assert request.pooling_params is not None
        ids, fault, size = request.prompt_token_ids, self.embedding_fault, self.form.size
        of_text, of_tokens = [[len(ids), ids[0], ids[-1]][:size]], [[one] * size for one in ids]
        rows = of_tokens if request.pooling_params.of_tokens else of_text
        numbers = np.array(rows, np.float32) * np.float32(self.factor)
        reason = "stop" if fault is None else "error"
        yield RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=ids,
            outputs=[CompletionOutput(0, "", [], finish_reason=reason, stop_reason=fault)],  # type: ignore[arg-type]
            finished=True,
            pooled=None if fault else numbers.tobytes(),
        )
