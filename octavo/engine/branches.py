"""Branches: the tokens of one session, by the branch's number.

    fork(3, 0)      1 and 2 begin with the tokens of 0
    take(...)       lends branches to a call that generates; other calls are refused them until they are given back
    give_back       appends what the call generated

A branch is its tokens and nothing else. A call sends them as a prompt, and the prefix tree gives each request the
blocks that hold the tokens it begins with. So branches share blocks, a fork costs nothing, and a session that rests
keeps no block from other requests.

A branch that is lent may still be forked and pruned, through the call that has it: copies are lent to it, too.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from octavo.engine.calls import listed_or_one
from octavo.errors import InvalidRequestError
from octavo.request import RequestLimits
from octavo.sampling_params import MAX_N, SamplingParams
from octavo.shown import shown

TokenIds = tuple[int, ...]


class Branches:
    """Owner of a session's tokens. Any thread may call it.

    num_tokens: those of all branches together.
    """

    def __init__(
        self, token_ids: Sequence[int], limits: RequestLimits, admit: Callable[[int], None] = lambda num_tokens: None
    ) -> None:
        """admit: raises an error if a fork or a text would add too many tokens."""
        if not limits.enable_prefix_caching:
            raise InvalidRequestError(
                "enable_prefix_caching is False, and without it each step of a session would compute all of its tokens "
                "again: start the engine with enable_prefix_caching=True, or send whole prompts"
            )
        self._limits = limits
        self._admit = admit
        self._lock = threading.RLock()  # reentrant for signal handlers
        self._tokens: dict[int, TokenIds] = {0: tuple(token_ids)}
        self._lent: set[int] = set()  # to calls that have not ended
        self._next = 1
        self.num_tokens = len(token_ids)
        self.is_closed = False

    def tokens(self) -> dict[int, TokenIds]:
        """Those of each branch."""
        with self._lock:
            self._check_open()
            return dict(self._tokens)

    def fork(self, n: int, branch: int, *, may_be_lent: bool = False) -> list[int]:
        """-> the numbers of n branches with the same tokens, the branch itself first. Copies of one that is lent are
        lent, too."""
        with self._lock:
            number, most = self._known(branch, may_be_lent), MAX_N + 1 - len(self._tokens)
            count = whole(n)
            if count is None or not 1 <= count <= most:
                raise InvalidRequestError(
                    f"n is {shown(n)}, allowed is 1 to {most}: the branch itself and its copies; a session holds "
                    f"{MAX_N} branches, prune what you need no more"
                )
            copies, tokens = range(self._next, self._next + count - 1), self._tokens[number]
            self._admit(len(copies) * len(tokens))
            self._next += len(copies)
            self.num_tokens += len(copies) * len(tokens)
            self._tokens.update(dict.fromkeys(copies, tokens))
            if number in self._lent:
                self._lent.update(copies)
            return [number, *copies]

    def extend(self, token_ids: Sequence[int], branch: int | None) -> None:
        """branch None: every branch. Nothing changes if one of them has no room."""
        with self._lock:
            numbers = self._all() if branch is None else [self._known(branch)]
            most = self._limits.max_model_len - 1
            for number in numbers:
                if (total := len(self._tokens[number]) + len(token_ids)) > most:
                    raise InvalidRequestError(
                        f"branch {number} would have {total} tokens, allowed are {most} (max_model_len is {most + 1} "
                        "and one new token must fit); add fewer, name another branch, or raise max_model_len"
                    )
            self._admit(len(numbers) * len(token_ids))
            self._append(dict.fromkeys(numbers, token_ids))

    def prune(self, branch: int, *, may_be_lent: bool = False) -> int:
        """-> its number."""
        with self._lock:
            number = self._known(branch, may_be_lent)
            self.num_tokens -= len(self._tokens.pop(number))
            return number

    def is_lent(self, branch: int) -> bool:
        with self._lock:
            return branch in self._lent

    def take(self, branches: object) -> dict[int, TokenIds]:
        """Lend branches to a call that continues them: all, one number, or several -> their tokens."""
        with self._lock:
            numbers = self._all() if branches is None else self._several(branches)
            for number in numbers:
                if len(self._tokens[number]) >= (most := self._limits.max_model_len):
                    raise InvalidRequestError(
                        f"branch {number} has {most} tokens, as many as max_model_len allows, and cannot go on: prune "
                        "it, name the others in branches, or raise max_model_len"
                    )
            self._lent.update(numbers)
            return {number: self._tokens[number] for number in numbers}

    def give_back(self, numbers: Iterable[int], made: Mapping[int, Sequence[int]]) -> None:
        """End the loan of branches, and append the tokens that they got. One that was pruned, or whose session was
        closed, gets none."""
        with self._lock:
            self._lent.difference_update(numbers)
            self._append({number: token_ids for number, token_ids in made.items() if number in self._tokens})

    def close(self) -> None:
        with self._lock:
            self.is_closed, self.num_tokens = True, 0
            self._tokens.clear()

    def _append(self, added: Mapping[int, Sequence[int]]) -> None:
        for number, token_ids in added.items():
            self._tokens[number] += tuple(token_ids)
            self.num_tokens += len(token_ids)

    def _all(self) -> list[int]:
        self._check_open()
        if not self._tokens:
            raise InvalidRequestError("no branch is left, all were pruned: begin another session")
        return [self._known(number) for number in self._tokens]

    def _several(self, branches: object) -> list[int]:
        self._check_open()
        many = [branches] if isinstance(branches, str | bytes | Mapping) else listed_or_one(branches)
        numbers = list(map(self._known, many))
        if len(set(numbers)) < len(numbers):
            raise InvalidRequestError(f"branches holds {shown(many)}, allowed is each number once")
        return numbers

    def _known(self, branch: object, may_be_lent: bool = False) -> int:
        """The number of a branch that exists and that no other call continues."""
        self._check_open()
        number = whole(branch)
        if number is None or number not in self._tokens:
            known = shown(list(self._tokens)) if self._tokens else "none, as all were pruned: begin another session"
            raise InvalidRequestError(f"branch is {shown(branch)}, allowed are {known}")
        if number in self._lent and not may_be_lent:
            raise InvalidRequestError(f"branch is {number}, which another call continues: wait until it has ended")
        return number

    def _check_open(self) -> None:
        if self.is_closed:
            raise InvalidRequestError("the session is closed: begin another one")


def branch_params(params: SamplingParams, branch: int) -> SamplingParams:
    """Parameters that were given for several branches, for one of them: each has a seed of its own, as samples have."""
    if params.seed is None or branch == 0:
        return params
    return params.replace(seed=(params.seed + branch) % 2**63)


def check_branch_params(params: SamplingParams) -> None:
    """Refuse what has no meaning for a branch."""
    if params.n != 1:
        raise InvalidRequestError(f"n is {params.n}, allowed is 1: a branch has one continuation; fork it for several")
    if params.truncate_prompt_tokens is not None:
        raise InvalidRequestError(
            f"truncate_prompt_tokens is {params.truncate_prompt_tokens}, allowed is None: a branch is continued whole; "
            "begin a session with the tokens to keep"
        )


def whole(value: object) -> int | None:
    """The value as a whole number; None if it is none, or a bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
