"""A scripted engine that says a given text, token by token, in place of a model that calls tools and thinks."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

from octavo.engine.input import InputProcessor
from octavo.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from octavo.request import ModelInfo, Request
from octavo.sampling_params import RequestOutputKind, SamplingParams
from tests.server.scripted_engine import LIMITS, ScriptedEngine
from tests.text.tokenizers import packaged

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.reasoning_content }} {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


class SpeakingEngine(ScriptedEngine):
    """says: its answer to everyone. template: what its tokenizer's chat template has; hints in a comment show which
    formats it writes."""

    def __init__(self, says: str, template: str = TOOL_TEMPLATE, reason: FinishReason = "stop") -> None:
        super().__init__()
        self.says, self.reason = says, reason
        self.limits = replace(LIMITS, max_model_len=2048)
        self.tokenizer = copy.copy(packaged("smollm2"))
        self.tokenizer.__dict__.pop("thought_marks", None)  # of the copied one's template
        self.tokenizer._chat_templates = {"default": template}
        self.inputs = InputProcessor(self.tokenizer, self.limits, seed=0)

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(**asdict(self.limits), default_sampling_params=SamplingParams(), card=[])

    @property
    def prompt(self) -> str:
        """That of the last request."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(self.requests[-1].prompt_token_ids, skip_special_tokens=False)

    async def _say(self, request: Request) -> AsyncIterator[RequestOutput]:
        assert self.tokenizer is not None
        ids = self.tokenizer.encode(self.says, add_special_tokens=False)
        is_delta = request.sampling_params.output_kind is RequestOutputKind.DELTA
        pieces = [[one] for one in ids] if is_delta else [ids]
        for place, piece in enumerate(pieces):
            is_last = place == len(pieces) - 1
            yield self._piece(request, piece, self.reason if is_last else None)

    def _piece(self, request: Request, ids: list[int], reason: FinishReason | None) -> RequestOutput:
        assert self.tokenizer is not None
        text = self.tokenizer.decode(ids, skip_special_tokens=request.sampling_params.skip_special_tokens)
        made: dict[str, Any] = {"text": text, "token_ids": ids, "finish_reason": reason}
        return RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[CompletionOutput(index=index, **made) for index in range(request.sampling_params.n)],
            finished=reason is not None,
            metrics=None if reason is None else RequestMetrics(arrival_time=1.0, finished_time=2.0),
        )
