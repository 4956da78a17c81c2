"""A server in a separate process whose engine sends a word every few milliseconds and computes nothing: only the front
end's own work can delay a stream.

python -m tests.server.paced_app     prints its port
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator
from functools import lru_cache

import uvicorn

from octavo.engine.input import InputProcessor
from octavo.engine.lazy_logprobs import LogprobRows, pack_rows
from octavo.messages import LogprobRow
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.request import ModelInfo, Request, RequestLimits
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.server.scripted_engine import ScriptedEngine

PACE_S = 0.005
LIMITS = RequestLimits(max_model_len=8192, max_num_seqs=256, max_logprobs=20, vocab_size=49152, eos_token_ids=(2,))
_ROWS = 128


class PacedEngine(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = InputProcessor(self.tokenizer, LIMITS, seed=0)

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo.of(LIMITS, SamplingParams(), [])

    async def _say(self, request: Request) -> AsyncIterator[RequestOutput]:
        num_tokens = request.max_output_tokens
        if request.sampling_params.output_kind is RequestOutputKind.FINAL_ONLY:
            yield self._all(request, num_tokens, is_last=True)
            return
        for number in range(num_tokens):
            await asyncio.sleep(PACE_S)
            yield self._all(request, 1, is_last=number == num_tokens - 1)

    def _all(self, request: Request, num_tokens: int, is_last: bool) -> RequestOutput:
        params = request.sampling_params
        prompt_rows = None
        if params.prompt_logprobs is not None:
            prompt_rows = self._rows(tuple(request.prompt_token_ids), params.prompt_logprobs)
        ids = [1000] * num_tokens
        rows = None if params.logprobs is None else self._rows(tuple(ids), params.logprobs)
        completions = [
            CompletionOutput(
                index=index,
                text=" word" * num_tokens,
                token_ids=ids,
                logprobs=rows,  # type: ignore[arg-type]
                finish_reason="length" if is_last else None,
            )
            for index in range(params.n)
        ]
        return RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=request.prompt_token_ids,
            outputs=completions,
            finished=is_last,
            prompt_logprobs=prompt_rows,  # type: ignore[arg-type]
        )

    @lru_cache(maxsize=8)  # noqa: B019  there is one engine
    def _rows(self, token_ids: tuple[int, ...], num_top: int) -> LogprobRows:
        assert self.tokenizer is not None
        rows = LogprobRows(self.tokenizer.token_texts)
        for start in range(0, len(token_ids), _ROWS):
            part = token_ids[start : start + _ROWS]
            tops = [1000 + (7 * start + number) % 40000 for number in range(num_top)]
            made = [LogprobRow([one, *tops], [-0.5] * (1 + num_top), 1) for one in part]
            rows.extend(pack_rows(made))
        return rows


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # from here on as in front ends
    sys.setswitchinterval(0.001)
    settings = ServerSettings(served_model_name=("tiny",), trust_request_chat_template=True)
    app = create_app(PacedEngine(), settings)
    gc.collect()
    gc.freeze()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        server = uvicorn.Server(uvicorn.Config(app, http="httptools", loop="uvloop", access_log=False))
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
