"""SessionCall: one call that continues branches of a session, which may be forked and pruned while it runs.

    branch 0 ── engine request ──┐
    branch 1 ── engine request ──┼──▶ outputs ──▶ a stream's events, or the whole answer
    a copy   ── engine request ──┘                 (added by `fork`: it begins with the tokens that its parent has)

The call takes its branches when the first output is asked for, so one that its client never reads takes none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

from octavo.engine.branches import branch_params
from octavo.engine.output import RequestText
from octavo.errors import InvalidRequestError
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.server.api_errors import bad_field
from octavo.server.generation import raise_failure
from octavo.server.merged_streams import MergedStreams
from octavo.server.openai_calls import Call
from octavo.server.serving import Serving
from octavo.server.session_store import Expect, StoredSession

#: copies of a branch that become engine requests without a pause
_STARTED_AT_ONCE = 16


class SessionCall:
    """branches: engine request id -> branch, of those that it began with and of their copies, in order."""

    def __init__(
        self, serving: Serving, session: StoredSession, call: Call, taken: Mapping[int, tuple[int, ...]]
    ) -> None:
        """taken: the branches and their tokens, as the call was checked with them."""
        self._serving = serving
        self._session = session
        self._call = call
        self._taken = taken
        self._is_whole = True
        self._merged = MergedStreams()
        self._expect: Expect = lambda num_tokens: None
        self._params: dict[int, SamplingParams] = {}
        self._prompts: dict[int, list[int]] = {}
        self._ids: dict[int, str] = {}
        self._made: dict[int, list[int]] = {}  # of branches that were not given back
        self.branches: dict[str, int] = {}

    def stream(self) -> AsyncGenerator[RequestOutput]:
        """New tokens as they come. A branch has its tokens once its last output was taken; those that still run when
        the client leaves keep what was taken."""
        self._is_whole = False
        return self._outputs(RequestOutputKind.DELTA)

    async def whole(self) -> list[RequestOutput]:
        """The last output of each branch; all of them get their tokens, or none."""
        done: dict[int, RequestOutput] = {}
        async with aclosing(self._outputs(RequestOutputKind.FINAL_ONLY)) as outputs:
            async for output in outputs:
                raise_failure(output)
                done[self.branches[output.request_id]] = output
        return [done[number] for number in self.branches.values()]

    async def fork(self, n: int, branch: int) -> list[int]:
        """As Branches.fork: copies of a branch that runs go on from the tokens that it has now."""
        params = self._call.params
        if params.reports_logprobs or params.prompt_logprobs is not None:
            raise bad_field(
                "branch",
                f"is {branch}, whose call reports log-probabilities, and their number is bounded when a call begins: "
                "fork it before or after that call, or leave logprobs out",
            )
        check_count(len(self._made) + max(n - 1, 0), self._serving)
        snapshot = await self._serving.client.snapshot(self._ids[branch])
        branches = self._session.branches
        if self._session.calls.get(branch, self) is not self:
            raise InvalidRequestError(f"branch {branch} was continued by another call at the same moment: try again")
        _, *copies = branches.fork(n, branch, may_be_lent=True)
        if copies and branches.is_lent(copies[0]):
            try:
                self._expect(len(copies) * (params.max_tokens or 0))
            except BaseException:
                branches.give_back(copies, {})
                for number in copies:
                    branches.prune(number)
                raise
            for place, number in enumerate(copies):
                own = branch_params(self._params[branch], number - branch)
                self._merged.add(number, self._begin(number, self._prompts[branch], own, snapshot))
                if place % _STARTED_AT_ONCE == _STARTED_AT_ONCE - 1:
                    await asyncio.sleep(0)
        return [branch, *copies]

    async def prune(self, branch: int) -> None:
        """As Branches.prune: one that runs ends at once, with a last output."""
        number = self._session.branches.prune(branch, may_be_lent=True)
        if number in self._made:
            ended = CompletionOutput(index=0, text="", token_ids=[], finish_reason="abort")
            await self._merged.end(
                number,
                RequestOutput(
                    request_id=self._ids[number],
                    prompt=None,
                    prompt_token_ids=self._prompts[number],
                    outputs=[ended],
                    finished=True,
                ),
            )

    async def _outputs(self, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput]:
        session, numbers, has_ended = self._session, list(self._taken), False
        taken = session.branches.take(numbers)
        self._made = {number: [] for number in numbers}
        try:
            if taken != self._taken:
                raise InvalidRequestError("branches were changed by another call at the same moment: send it again")
            most = len(numbers) * (self._call.params.max_tokens or 0)
            with self._serving.sessions.generating(session, most) as self._expect:
                params = self._call.params.clone(kind)
                streams = {
                    number: self._begin(number, list(token_ids), branch_params(params, number))
                    for number, token_ids in taken.items()
                }
                async with aclosing(self._merged.outputs(streams)) as outputs:
                    async for output in outputs:
                        if self._note(output):
                            yield output
                has_ended = True
        finally:
            session.branches.give_back(self._made, self._made if has_ended or not self._is_whole else {})
            for number in self._made:
                session.calls.pop(number, None)

    def _begin(
        self, number: int, prompt: list[int], params: SamplingParams, forks: RequestText | None = None
    ) -> AsyncIterator[RequestOutput]:
        """A branch runs from now on."""
        generation = self._call.generation
        request_id = self._ids[number] = generation.engine_request_id(number)
        self.branches[request_id] = number
        self._params[number], self._prompts[number], self._made[number] = params, prompt, []
        self._session.calls[number] = self
        return self._serving.client.generate(
            prompt,
            params,
            request_id,
            priority=generation.priority,
            cache_salt=generation.cache_salt,
            trace_headers=generation.trace_headers,
            data_parallel_rank=generation.data_parallel_rank,
            forks=forks,
            lora_request=self._serving.adapter(self._session.model),
        )

    def _note(self, output: RequestOutput) -> bool:
        """Keep the tokens; give the branch back with its last output, if outputs are read one by one. False: it had
        ended already, when it was pruned."""
        number = self.branches[output.request_id]
        if number not in self._made:
            return False
        for one in output.outputs:
            self._made[number] = [] if one.finish_reason == "error" else self._made[number] + one.token_ids
        if output.finished and not self._is_whole:
            self._session.branches.give_back([number], {number: self._made.pop(number)})
            self._session.calls.pop(number, None)
        return True


def check_count(num: int, serving: Serving) -> None:
    """Whether one call may continue so many branches."""
    most = serving.settings.max_prompts_per_request
    if not 1 <= num <= most:
        raise bad_field(
            "branches",
            f"holds {num} branches, allowed are 1 to {most}: send several requests, or start the server with a larger "
            "--max-prompts-per-request",
        )
