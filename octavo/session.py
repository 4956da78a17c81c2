"""Session: one prompt, continued in branches that are forked, extended and pruned; they share what they have in common.

    llm.session("Once upon a time")        branch 0   Once upon a time
    fork(2)                                0, 1       the same tokens
    extend(" a king", branch=1)            1          Once upon a time a king
    generate(params)                       0, 1       both go on, in one batch
    stream(params)                         0, 1       the same, and gives outputs as they come
    prune(0)                               1          is left

`octavo/engine/branches.py` keeps the branches and says how they share blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from octavo.engine.branch_stream import BranchStream
from octavo.engine.branches import Branches, branch_params, check_branch_params, whole
from octavo.engine.calls import listed
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.turns import EngineTurns, OutputStream
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch as it was when it was asked for: its tokens from the prompt's first on."""

    token_ids: list[int]
    _tokenizer: Tokenizer | None = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str | None:
        """Of all tokens, without special ones; None after skip_tokenizer_init=True."""
        return None if self._tokenizer is None else self._tokenizer.decode(self.token_ids)


class Session:
    """Branches of one prompt, numbered from 0; `LLM.session` makes it.

        with llm.session("Once upon a time") as story:
            a, b = story.fork(2)
            story.extend(" a king", branch=a)
            outputs = story.generate(SamplingParams(max_tokens=20))
            story.prune(b)

    What it costs: a branch is a list of tokens, so forking and pruning cost nothing, and no block of the KV cache is
    pinned. `generate` finds the full blocks of a branch in the prefix cache and computes the rest: the last, partly
    filled block of each branch, and whatever was evicted meanwhile, as a request with the same prompt would.

    Safe to use from several threads. A branch that runs, because one call continues it, may be forked and pruned
    meanwhile, and is refused to other calls until that one has ended. Raises InvalidRequestError for anything that has
    no meaning.
    """

    def __init__(
        self,
        engine: LLMEngine,
        turns: EngineTurns,
        make: Callable[[object, object, object, RequestOutputKind | None], list[Request]],
        prompt: Prompt,
        cache_salt: str | None = None,
    ) -> None:
        """turns, make: those of the LLM. make: requests from prompts, parameters, priorities and the kind of output."""
        request = engine.make_request("session", prompt, SamplingParams(seed=0), cache_salt=cache_salt)
        self._branches = Branches(request.prompt_token_ids, engine.limits)
        self._cache_salt = request.cache_salt
        self._engine = engine
        self._turns = turns
        self._make = make
        self._calls: WeakValueDictionary[int, BranchStream] = WeakValueDictionary()  # the last one of each branch

    @property
    def branches(self) -> dict[int, Branch]:
        """Every branch's tokens and text, by number; of one that runs, those before its call."""
        tokenizer = self._engine.tokenizer
        return {number: Branch([*token_ids], tokenizer) for number, token_ids in self._branches.tokens().items()}

    def fork(self, n: int, branch: int = 0) -> list[int]:
        """n branches with this branch's tokens: itself and n - 1 copies -> the numbers of all n.

        Copies of a branch that runs are continued by its call from the tokens that it has at this moment, with its
        parameters; their outputs begin with what it had generated. A copy's seed is the branch's, counted on by the
        difference of their numbers.
        """
        call = self._call(branch)
        if call is None:
            return self._branches.fork(n, branch)
        numbers = call.fork(n, branch)
        self._calls.update(dict.fromkeys(numbers, call))
        return numbers

    def extend(self, text: str | Sequence[int], branch: int | None = None) -> None:
        """Append a text, tokenised without special tokens, or token ids; to every branch if none is named."""
        self._branches.tokens()  # a closed session says so, whatever the text
        self._branches.extend(self._engine.continuation(text), branch)

    def generate(
        self,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        branches: int | Iterable[int] | None = None,
    ) -> dict[int, RequestOutput]:
        """Continue every branch, or those named, in one batch -> each one's output, by number.

        The output's token_ids become the branch's, a last end or stop token included; after an output with
        finish_reason "error" the branch is as before. sampling_params: one for all, a list of one each, or None for
        the model's defaults. A seed that is given for all is counted on by the branch's number, so that copies differ.
        """
        with closing(self._begin(sampling_params, branches, RequestOutputKind.FINAL_ONLY)) as call:
            outputs = dict(call)
            return {number: outputs[number] for number in call.numbers}

    def stream(
        self,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        branches: int | Iterable[int] | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """The same, yielding a branch's number and output whenever it has new tokens.

        The parameters' output_kind chooses what each output holds. A branch has its tokens once its last output is
        read, and may then be extended, or continued by another call, while the others go on. Closing or dropping the
        stream ends the branches that still run; they keep the tokens of the outputs that were read.
        """
        return self._begin(sampling_params, branches, None)

    def prune(self, branch: int) -> None:
        """Drop a branch; its number is not used again. One that runs ends at once, with a last output whose
        finish_reason is "abort". Its blocks stay cached until others need the memory."""
        call = self._call(branch)
        if call is None:
            self._branches.prune(branch)
        else:
            call.prune(branch)

    def close(self) -> None:
        """Drop all branches. A call of another thread that is generating gets its outputs."""
        self._branches.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._branches.is_closed:
            return "Session(closed)"
        return f"Session({len(self._branches.tokens())} branches, {self._branches.num_tokens} tokens)"

    def _call(self, branch: object) -> BranchStream | None:
        """The last call that continued this branch, if it is not over."""
        number = whole(branch)
        return None if number is None else self._calls.get(number)

    def _begin(self, params: Any, branches: object, kind: RequestOutputKind | None) -> BranchStream:
        """Continue branches; their requests are queued when the first output is asked for. kind None: that of the
        parameters."""
        taken = self._branches.take(branches)
        try:
            prompts = [{"prompt_token_ids": one, "cache_salt": self._cache_salt} for one in taken.values()]
            made = self._make(prompts, self._params(params, [*taken]), None, kind)
        except BaseException:
            self._branches.give_back(taken, {})
            raise
        requests = dict(zip(taken, made, strict=True))
        is_whole = kind is RequestOutputKind.FINAL_ONLY
        call = BranchStream(OutputStream(self._turns, made), self._branches, requests, self._copy, is_whole=is_whole)
        self._calls.update(dict.fromkeys(taken, call))
        return call

    def _copy(self, parent: Request, distance: int) -> Request:
        """The request of a copy whose number is so much higher."""
        prompt = {"prompt_token_ids": parent.prompt_token_ids, "cache_salt": self._cache_salt}
        params = branch_params(parent.sampling_params, distance)
        return self._engine.make_request(f"{parent.request_id}-{distance}", prompt, params, parent.priority)

    def _params(self, given: Any, numbers: Sequence[int]) -> Any:
        """Parameters for each branch; what is of a wrong kind is left to the LLM to refuse."""
        if given is None:
            given = self._engine.default_sampling_params.clone()
        if isinstance(given, SamplingParams):
            given = [branch_params(given, number) for number in numbers]
        elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
            given = listed("sampling_params", given)
        for one in given if isinstance(given, list) else ():
            if isinstance(one, SamplingParams):
                check_branch_params(one)
        return given
