"""Session: one prompt, continued in branches that are forked, extended and pruned; they share what they have in common.

    llm.session("Once upon a time")        branch 0   Once upon a time
    fork(2)                                0, 1       the same tokens
    extend(" a king", branch=1)            1          Once upon a time a king
    generate(params)                       0, 1       both go on, in one batch
    prune(0)                               1          is left

`octavo/engine/branches.py` keeps the branches and says how they share blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from octavo.engine.branches import Branches, branch_params, check_branch_params
from octavo.engine.calls import listed
from octavo.engine.input import Prompt
from octavo.engine.llm_engine import LLMEngine
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
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

    Safe to use from several threads. A branch that one thread is generating is refused to others until that call has
    ended; other branches are not. Raises InvalidRequestError for anything that has no meaning.
    """

    def __init__(
        self,
        engine: LLMEngine,
        generate: Callable[..., list[RequestOutput]],
        prompt: Prompt,
        cache_salt: str | None = None,
    ) -> None:
        """generate: that of the LLM."""
        request = engine.make_request("session", prompt, SamplingParams(seed=0), cache_salt=cache_salt)
        self._branches = Branches(request.prompt_token_ids, engine.limits)
        self._cache_salt = request.cache_salt
        self._engine = engine
        self._generate = generate

    @property
    def branches(self) -> dict[int, Branch]:
        """Every branch's tokens and text, by number."""
        tokenizer = self._engine.tokenizer
        return {number: Branch([*token_ids], tokenizer) for number, token_ids in self._branches.tokens().items()}

    def fork(self, n: int, branch: int = 0) -> list[int]:
        """n branches with this branch's tokens: itself and n - 1 copies -> the numbers of all n."""
        return self._branches.fork(n, branch)

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
        with self._branches.continued(branches) as taken:
            params = self._params(sampling_params, [*taken])
            prompts = [{"prompt_token_ids": one, "cache_salt": self._cache_salt} for one in taken.values()]
            outputs = dict(zip(taken, self._generate(prompts, params, use_tqdm=False), strict=True))
            made = {number: output.outputs[0] for number, output in outputs.items()}
            self._branches.keep({number: one.token_ids for number, one in made.items() if one.finish_reason != "error"})
        return outputs

    def prune(self, branch: int) -> None:
        """Drop a branch; its number is not used again. Its blocks stay cached until others need the memory."""
        self._branches.prune(branch)

    def close(self) -> None:
        """Drop all branches. A call of another thread that is generating gets its outputs."""
        self._branches.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._branches.is_closed:
            return "Session(closed)"
        return f"Session({len(self._branches.tokens())} branches, {self._branches.num_tokens} tokens)"

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
