"""The report of a run's time and memory, which tally.py computes from the event log."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.observe.block_use import Occupancy


@dataclass(frozen=True, slots=True)
class Sharing:
    """The blocks that the sequences of one request hold."""

    request_id: str
    num_sequences: int
    num_blocks: int  # held, each counted once
    num_shared_blocks: int
    num_blocks_unshared: int  # the same tables without sharing

    @property
    def num_saved(self) -> int:
        return self.num_blocks_unshared - self.num_blocks


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of one run. Memory figures are from the step with the most blocks; those from `waste` on cover all steps.

    Unshared: counted once for each sequence that holds a block, as if nothing were shared. A kernel that reads shared
    blocks once reads `read_bytes` of keys and values in a decode step, one that does not reads `read_bytes_unshared`.
    """

    num_requests: int
    num_sequences: int
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float
    mean_ttft_s: float
    num_steps: int
    num_preemptions: int
    num_prefix_tokens: int
    num_forced_tokens: int  # by grammars, without a forward pass each
    peak: Occupancy
    num_blocks: int
    block_size: int
    block_bytes: int
    contiguous_blocks: int  # max_model_len reserved for each sequence of the peak
    waste: float  # slots held but not filled, share of slots held
    mean_blocks: float
    mean_blocks_unshared: float
    read_bytes: float  # in a decode step, on average
    read_bytes_unshared: float
    sharing: Sharing | None

    @property
    def sharing_saved(self) -> float:
        """Share of blocks that sharing saves, on average over all steps."""
        return 1 - self.mean_blocks / self.mean_blocks_unshared if self.mean_blocks_unshared else 0.0

    def lines(self) -> list[tuple[str, str]]:
        """For people: (label, text)."""
        peak = self.peak
        used = f"{peak.num_used_blocks:,} of {self.num_blocks:,}"
        lines = [
            ("did", f"requests {self.num_requests:,}, sequences {self.num_sequences:,}, steps {self.num_steps:,}"),
            (
                "speed",
                f"{self.num_output_tokens / self.seconds:,.1f} tok/s out ({self.num_output_tokens:,} tokens in "
                f"{self.seconds:.2f} s), {self.num_prompt_tokens:,} prompt tokens, "
                f"first token after {self.mean_ttft_s * 1e3:,.0f} ms on average",
            ),
            (
                "blocks",
                f"{used} in use at the peak, for {_count(peak.num_sequences)}: {self._size(peak.num_used_blocks)}",
            ),
            ("waste", f"{self.waste:.1%} of the slots in used blocks held no token, over all steps"),
            ("contiguous", self._contiguous()),
        ]
        if self.sharing is not None:
            lines.append(("shared", _sharing_text(self.sharing)))
        if self.mean_blocks < self.mean_blocks_unshared:
            lines += [("saved", self._saved()), ("reads", self._reads())]
        if self.num_prefix_tokens:
            lines.append(("prefix hits", f"{self.num_prefix_tokens:,} prompt tokens were not computed again"))
        if self.num_forced_tokens:
            lines.append(("forced", f"{self.num_forced_tokens:,} tokens came from grammars, without a draw"))
        if self.num_preemptions:
            lines.append(("preempted", f"{self.num_preemptions:,} times a sequence gave up its blocks and waited"))
        return lines

    def _contiguous(self) -> str:
        times = self.contiguous_blocks / max(self.peak.num_used_blocks, 1)
        return (
            f"{self.contiguous_blocks:,} blocks ({self._size(self.contiguous_blocks)}) would have been reserved with "
            f"max_model_len for each sequence, {times:,.0f} times as much"
        )

    def _saved(self) -> str:
        return (
            f"sharing saved {self.sharing_saved:.1%} of the blocks: {self.mean_blocks:,.1f} in use over all steps, "
            f"in place of {self.mean_blocks_unshared:,.1f}"
        )

    def _reads(self) -> str:
        once, again = self.read_bytes / 2**20, self.read_bytes_unshared / 2**20
        return f"a decode step reads {once:,.1f} MiB of KV if it reads shared blocks once, {again:,.1f} MiB if not"

    def _size(self, num_blocks: int) -> str:
        return f"{num_blocks * self.block_bytes / 2**20:,.1f} MiB"


def _count(num_sequences: int) -> str:
    return "1 sequence" if num_sequences == 1 else f"{num_sequences:,} sequences at once"


def _sharing_text(sharing: Sharing) -> str:
    owned = sharing.num_blocks - sharing.num_shared_blocks
    return (
        f"{sharing.num_sequences} samples of one prompt held {sharing.num_blocks:,} blocks, "
        f"{sharing.num_shared_blocks:,} shared and {owned:,} owned alone, in place of {sharing.num_blocks_unshared:,}"
    )
