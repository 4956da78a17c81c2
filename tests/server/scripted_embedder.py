"""A scripted engine that embeds: a text's numbers are its length, its first token and its last one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np

from octavo.engine.llm_engine import GenerateCall
from octavo.engine.pooled import PoolingInput
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.pooling_params import PooledForm
from octavo.request import ModelInfo
from octavo.sampling_params import SamplingParams
from tests.server.scripted_engine import LIMITS, ScriptedEngine

EMBEDS = replace(LIMITS, pooled=PooledForm(size=3, normalizes=False))


class ScriptedEmbedder(ScriptedEngine):
    def __init__(self, fault: str | None = None, factor: float = 1.0) -> None:
        """fault: what every request ends with. factor: of all numbers."""
        super().__init__()
        self.factor = factor
        self.embedding_fault = fault
        self.inputs = PoolingInput(self.tokenizer, EMBEDS, seed=0)

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo.of(EMBEDS, SamplingParams(), [])

    async def _outputs(self, call: GenerateCall) -> AsyncIterator[RequestOutput]:
        assert call.sampling_params is not None
        assert call.request_id is not None
        salt = call.cache_salt
        request = self.inputs.process(call.request_id, call.prompt, call.sampling_params, 0.0, call.priority, salt)
        self.requests.append(request)
        ids, fault = request.prompt_token_ids, self.embedding_fault
        numbers = np.array([len(ids), ids[0], ids[-1]], np.float32) * np.float32(self.factor)
        reason = "stop" if fault is None else "error"
        yield RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=ids,
            outputs=[CompletionOutput(0, "", [], finish_reason=reason, stop_reason=fault)],  # type: ignore[arg-type]
            finished=True,
            pooled=None if fault else numbers.tobytes(),
        )
