"""TritonModel: a model on a GPU, bound to a KV pool there.

The forward pass is recorded once and bound several times, as a program for each kind of step:

    chunks     any mix of prefill chunks and decodes, through the last layer's attention
    heads      the rest of the pass, for the rows whose logits are needed
    decodes    both, one row per sequence

Heads and decodes have several programs each, by the number of rows: see `row_programs.py`. A stage of a pipeline that
passes hidden states on has no heads: its chunks are the whole pass, for every token.

`forward`, `logits` and the rest of CompiledModel take any step from the host. `decode` runs a step of decodes alone on
tensors that are already on the device, waits for nothing, and can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.distributed.collectives import Collectives
from octavo.errors import OutOfMemoryError
from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.attention import AttentionChoice, ModelAttention
from octavo.kernels.cuda import sizes
from octavo.kernels.cuda.block_mover import DeviceMover
from octavo.kernels.cuda.driver import GPU, has_hopper_kernels
from octavo.kernels.cuda.mixture_launch import kernels_of
from octavo.kernels.cuda.program import Program
from octavo.kernels.cuda.quantized_products import QuantizedProducts
from octavo.kernels.cuda.rank_sums import RankSums
from octavo.kernels.cuda.row_programs import Passes, first_for
from octavo.kernels.cuda.shared import Shared
from octavo.kernels.cuda.sizes import MAX_EDITED_ROWS, peer_bytes
from octavo.kernels.cuda.step import DeviceStep, Staging, StepKind, slots_of
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda.whole_logits import WholeLogits
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Contents, Measured
from octavo.kernels.model import Model
from octavo.kernels.placed_experts import placed_experts
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import See
from octavo.kernels.triton.attention.memory import TORCH_DTYPE, AttentionMemory
from octavo.kernels.triton.block_copies import copy_blocks, in_order
from octavo.kernels.triton.experts.placing import Placings
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.linear.row_counts import cheap_row_counts, padded_size
from octavo.kernels.triton.sampling import logprobs
from octavo.kernels.triton.sampling.draw import sample
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch
from octavo.kernels.triton.sampling.logprobs import processed_logits
from octavo.kernels.triton.sampling.parted_draw import PartedDraw
from octavo.kernels.triton.sampling.parted_top_k import PartedTopK
from octavo.sampling.columns import SamplingBatch

if TYPE_CHECKING:
    from octavo.kernels.cuda.adapter_memory import PreparedAdapter
    from octavo.kernels.cuda.adapters import DeviceAdapters


class TritonModel:
    """Implements `Loaded` of `octavo/kernels/device.py` and, once bound, `CompiledModel`; logits are a device tensor.
    Owns all device memory except the runner's rows."""

    def __init__(
        self,
        model: Model,
        kv: KVLayout,
        limits: StepLimits,
        dtype: KVDType,
        device: torch.device,
        gpu: GPU,
        attention: AttentionChoice,
        see: See | None = None,
        ranks: Collectives | None = None,
        *,
        peer_memory: bool = True,
    ) -> None:
        """peer_memory: ranks exchange small messages over it."""
        self.device, self.chained, self.limits = device, gpu.chains, limits
        self._kv = kv
        recording = ModelRecording.of(model)
        whole, draws = recording.whole, recording.gives_logits
        layers = whole.layers
        for layer in layers:
            kv.check(layer)
        self._weights = DeviceWeights(device, TORCH_DTYPE[dtype])
        self._memory = AttentionMemory(layers, kv, limits, gpu, device, dtype)
        self._memory.sinks = {layer: self._weights.vector(layer.sinks) for layer in layers if layer.sinks is not None}
        self._attention = ModelAttention(layers, dtype, kv, attention, self._memory)
        self.attention_names, self.short_chunk = self._attention.names, self._attention.short_chunk
        contents, most_rows = Contents.of((whole,)), max(limits.max_num_tokens, limits.max_num_seqs)
        self._room = Room.of(list(contents.mixtures.values()), most_rows, TORCH_DTYPE[dtype], device, gpu)
        is_fixed = attention == "deterministic"
        self._sums = None
        if ranks is not None and ranks.size > 1:
            most = peer_bytes(ranks.size, whole.instructions, limits.max_num_tokens, TORCH_DTYPE[dtype].itemsize)
            self._sums = RankSums(ranks, TORCH_DTYPE[dtype], gpu, device, most if peer_memory else 0, is_fixed=is_fixed)
        products = list(contents.products.values())
        self._quantized = QuantizedProducts.of(products, dtype, most_rows, device, gpu, is_fixed=is_fixed)
        self._adapters: DeviceAdapters | None = None
        if contents.adapted:
            from octavo.kernels.cuda.adapters import DeviceAdapters  # models without adapters run without its code

            given = (contents.adapted.values(), limits, TORCH_DTYPE[dtype], device)
            self._adapters = DeviceAdapters(*given, is_fixed=is_fixed, chained=self.chained)
        self.placed = placed_experts(contents.mixtures.values(), device)
        self._placings = None if self.placed is None else Placings(self.placed)
        rest = self._sums, is_fixed, self._room, self._quantized, self._adapters, self._placings
        self._shared = Shared(self._weights, gpu, self._memory, self._attention, see, *rest)
        self.experts_by = kernels_of(contents.mixtures.values(), self._shared)
        tiled = has_hopper_kernels(gpu.capability) and dtype != "float32" and not is_fixed
        seqs = limits.max_num_seqs
        shape = sizes.partial_sums(whole.instructions, seqs) if tiled else (0,)
        self._parts = torch.empty(shape, dtype=torch.float32, device=device)
        parts = self._parts if tiled else None
        passes = [Passes.of(recording, self._shared, limits, parts)]
        if self._adapters is not None and see is None:  # ops that are printed are the model's
            passes.insert(0, Passes.of(recording.without_adapters(), self._shared, limits, parts))
        #: of steps without adapters, and with
        self._plain, self._adapted = passes[0], passes[-1]
        self._last = self._plain
        #: passes never overlap in time, so they share their activations. Heads read a pass's result, so they share
        #: other memory among themselves
        bodies = [program for each in passes for program in (each.chunks, *each.decodes)]
        self._activations = self._place(bodies), self._place([head for each in passes for head in each.heads])
        products = [*Contents.of((recording.body,)).products.values()]
        dense = [each for each in products if not is_fixed and self._shared.quantized_product(each) is None]
        matrices = [self._weights.stacked(*each.parts) for each in dense]
        #: row counts to which a step's tokens are padded where products are cuBLAS's; ops that are printed have theirs
        self.row_counts = tuple(range(1, limits.max_num_tokens + 1))
        if see is None:
            self.row_counts = cheap_row_counts(matrices, limits.max_num_tokens, self._activations[0])
        if ranks is not None:  # they were measured, and all ranks must pad a step alike
            self.row_counts = tuple(ranks.of_first(self.row_counts))
        if self.placed is not None and ranks is not None:
            self.placed.join(ranks)
        self._whole_logits = WholeLogits(ranks if draws else None, limits, TORCH_DTYPE[dtype], device)
        #: where hidden states stay until the next stage has taken them
        self.outgoing = torch.empty(
            (0 if draws else limits.max_num_tokens, whole.kept[0].width), dtype=TORCH_DTYPE[dtype], device=device
        )
        self._weights.forget_host()
        self.parameters = MappingProxyType(self._weights.parameters)
        self.staging = Staging(device)
        drawing, vocab = (seqs, limits.vocab_size) if draws else (1, 1)
        self._sampling = SamplingWorkspace.allocate(drawing, vocab, device, edits=False)
        self._editing = SamplingWorkspace.allocate(min(drawing, MAX_EDITED_ROWS), vocab, device, edits=True)
        #: of rows with grammars; see `octavo/worker/device_grammars.py`
        self.token_masks = torch.zeros(sizes.token_masks(drawing, vocab), dtype=torch.int32, device=device)
        #: draws whose logits need not be whole: without filters, and with filters that keep few tokens
        self.parted_draws: tuple[PartedDraw, PartedTopK] | None = None
        if draws and self._sums is not None and not is_fixed:
            self.parted_draws = self._sums.parted_draws(seqs, limits.vocab_size, self._sampling)
        self._hidden: list[torch.Tensor] = []
        self._pool = torch.empty(0, dtype=torch.uint8, device=device)
        self._mover: DeviceMover | None = None

    def held(self) -> Measured:
        rest = self.staging.num_bytes + self._attention.num_bytes
        parts = self._sums, self._room, self._quantized, self.placed, self._mover
        rest += sum(each.num_bytes for each in parts if each is not None)
        activations = [*self._activations, *self._whole_logits.tensors, self.outgoing]
        workspace = [self._parts, *self._sampling.tensors, *self._editing.tensors, *self._memory.tensors]
        workspace.append(self.token_masks)
        weights = self._weights.num_bytes
        if self._adapters is not None:
            weights, rest = weights + self._adapters.weight_bytes, rest + self._adapters.work_bytes
        return {
            "weights": weights,
            "activations": sum(each.nbytes for each in activations),
            "workspace": rest + sum(each.nbytes for each in workspace),
        }

    def bind(self, num_blocks: int) -> TritonModel:
        num_bytes = num_blocks * self._kv.block_bytes
        try:
            self._pool = torch.zeros(num_bytes, dtype=torch.uint8, device=self.device)
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self.device)
            raise OutOfMemoryError(
                f"the KV pool of {num_blocks} blocks takes {num_bytes:,} bytes, but {free:,} of the GPU's {total:,} "
                f"are free beside weights and activations; set kv_cache_memory_bytes to {free * 9 // 10} or less, "
                "or lower num_gpu_blocks_override or gpu_memory_utilization, whichever chose this size"
            ) from error
        self._memory.bind(self._pool)
        return self

    # CompiledModel: steps from the host

    def forward(self, batch: StepBatch, complete: Callable[[torch.Tensor], None] | None = None) -> None:
        """complete: fills in those of the uploaded input_ids that only the device knows."""
        counts = np.diff(batch.query_start_loc)
        num_blocks = -(-int(batch.seq_lens.max()) // self._kv.block_size)
        tables = [np.ascontiguousarray(table[batch.rows, :num_blocks]) for table in batch.block_tables]
        rows = [batch.query_start_loc, batch.seq_lens, np.arange(len(batch.rows), dtype=np.int32)]
        types = [] if batch.token_types is None else [batch.token_types]
        slots = [] if self._adapters is None else [slots_of(batch)]
        uploaded = self.staging.upload([batch.input_ids, batch.positions, *rows, *types, *slots, *tables])
        input_ids, positions, query_start_loc, seq_lens, table_rows, *rest = uploaded
        token_types = rest.pop(0) if types else None
        token_slots = rest.pop(0) if slots else None
        step = DeviceStep(
            *(input_ids, positions, query_start_loc, seq_lens, table_rows, tuple(rest)),
            StepKind.of(batch, self.short_chunk),
            max_chunk=int(counts.max()),
            max_seq_len=int(batch.seq_lens.max()),
            token_types=token_types,
            adapters=token_slots,
        )
        if complete is not None:
            complete(input_ids)
        self.run_chunks(step)

    def calibrate(self, batch: StepBatch) -> None:
        with self._memory.calibration():
            self.forward(batch)

    def can_capture(self, batch: StepBatch) -> bool:
        """Whether such a step may be captured: none of its kernels needs lengths on the host."""
        longest = self._attention.longest_captured
        return longest is None or int(np.diff(batch.query_start_loc).max()) <= longest

    def run_chunks(self, step: DeviceStep) -> None:
        """Run a step of any kind whose tensors are already on the device; `logits` then reads its hidden states. Tokens
        beyond the last sequence's are padding, and so are sequences of length 0."""
        self._attention.plan(step, is_fused=False)
        self._last = self._begin(step)
        self._hidden = self._last.chunks.run(step, len(step.input_ids))

    def take_hidden(self, num_tokens: int, kind: StepKind) -> None:
        """Let `logits` read the hidden states of a replayed `run_chunks` of this many tokens."""
        self._last = self._passes(has_adapters=kind.has_adapters)
        self._hidden = self._last.chunks.kept(num_tokens)

    def logits(self, token_indices: IntArray) -> torch.Tensor:
        return self.logits_at(*self.staging.upload([token_indices]))

    def logits_at(self, indices: torch.Tensor) -> torch.Tensor:
        """`logits` for N indices on the device. The result's memory depends only on N. Of a model without a head: the
        hidden states."""
        if not self._last.heads:
            (hidden,) = self._hidden
            return hidden.index_select(0, indices)
        num_rows = len(indices)
        padded = padded_size(num_rows, self.limits.max_num_seqs, self.row_counts)
        head = first_for(padded, self._last.heads)
        for hidden, given in zip(self._hidden, head.given(num_rows), strict=True):
            torch.index_select(hidden, 0, indices, out=given)
        if self._adapters is not None and self._last is self._adapted:
            self._adapters.begin_head(indices)
        if self._placings is not None:
            self._placings.head = indices
        (logits,) = head.run(None, padded)
        return self._whole_logits.of(logits)[:num_rows]

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> IntArray:
        drawn: IntArray = self.launch_sample(logits, batch).cpu().numpy()
        return drawn

    def launch_sample(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """`sample` without waiting: the tokens [N] int32 on the device."""
        num_entries, has_edits, has_filters = len(batch.logits_rows), batch.has_edits, batch.has_filters
        entries = DeviceSamplingBatch.of(batch, self.staging.upload)
        tokens = torch.empty(num_entries, dtype=torch.int32, device=self.device)
        size = MAX_EDITED_ROWS if has_edits else num_entries
        for start in range(0, num_entries, size):
            end = start + size
            self.draw(logits, entries.part(start, end), tokens[start:end], has_edits=has_edits, has_filters=has_filters)
        return tokens

    def host_logits(self, logits: torch.Tensor, rows: IntArray) -> FloatArray:
        (indices,) = self.staging.upload([np.asarray(rows, np.int32)])
        copied: FloatArray = logits.index_select(0, indices).float().cpu().numpy()
        return copied

    def processed_logits(self, logits: torch.Tensor, batch: SamplingBatch, drawn: IntArray) -> torch.Tensor:
        entries = DeviceSamplingBatch.of(batch, self.staging.upload)
        (tokens,) = self.staging.upload([np.asarray(drawn, np.int32)])
        processed = torch.empty((len(tokens), logits.shape[1]), dtype=torch.float32, device=self.device)
        for start in range(0, len(tokens), MAX_EDITED_ROWS):
            end = start + MAX_EDITED_ROWS
            part, out = entries.part(start, end), processed[start:end]
            processed_logits(logits, part, tokens[start:end], out, self._editing, chained=self.chained)
        return processed

    def top_logprobs(
        self, logits: torch.Tensor, tokens: IntArray, k: int, *, as_logits: bool = False
    ) -> tuple[IntArray, FloatArray, IntArray]:
        (chosen,) = self.staging.upload([np.asarray(tokens, np.int32)])
        shape = (len(tokens), k + 1)
        found = torch.empty((2, *shape), dtype=torch.int32, device=self.device)
        ids, values, ranks = found[0], found[1].view(torch.float32), torch.empty_like(chosen)
        scan = self._sampling.scan
        logprobs.top_logprobs(logits, chosen, ids, values, ranks, scan, as_logits=as_logits, chained=self.chained)
        host = found.cpu().numpy()  # waits; one copy is faster than two
        return host[0], host[1].view(np.float32), ranks.cpu().numpy()

    def copy_blocks(self, source: IntArray, target: IntArray) -> None:
        blocks = self._pool.view(-1, self._kv.block_bytes)
        ids = self.staging.upload(in_order(source, target))
        for sources, targets in zip(ids[::2], ids[1::2], strict=True):
            copy_blocks(blocks, sources, targets, chained=self.chained)

    def prepare_adapter(self, source: AdapterSource) -> PreparedAdapter:
        assert self._adapters is not None, "a model without slots gets no adapters"
        return self._adapters.memory.prepare(source)

    def place_adapter(self, slot: int, prepared: PreparedAdapter) -> None:
        assert self._adapters is not None, "a model without slots gets no adapters"
        self._adapters.memory.place(slot, prepared)

    @property
    def row_adapters(self) -> torch.Tensor | None:
        """The slot of each permanent row's adapter, for steps of decodes; None: the model has no slots."""
        return None if self._adapters is None else self._adapters.rows

    def mover(self) -> DeviceMover:
        """One, however often it is asked for: it has a buffer on the device."""
        if self._mover is None:
            self._mover = DeviceMover("triton", self._pool.view(-1, self._kv.block_bytes))
        return self._mover

    # Stages of a pipeline

    def chunk_inputs(self, num_tokens: int, *, has_adapters: bool) -> list[torch.Tensor]:
        """Where the next `forward` or `run_chunks` reads its first tokens' hidden states, if it does not embed them."""
        return self._passes(has_adapters=has_adapters).chunks.given(num_tokens)

    def decode_inputs(self, num_rows: int, size: int, *, has_adapters: bool) -> list[torch.Tensor]:
        """The same, of the first rows of a `decode` of that size."""
        return first_for(size, self._passes(has_adapters=has_adapters).decodes).given(num_rows)

    def hidden_states(self, num_tokens: int) -> torch.Tensor:
        """Of the last `forward` or `run_chunks`, in a stage that gives them."""
        (hidden,) = self._hidden
        return hidden[:num_tokens]

    # Steps of decodes alone, whose tensors are on the device

    def decode(self, step: DeviceStep, *, is_part: bool = False) -> torch.Tensor:
        """Logits [S, V] of S sequences with one new token each. A sequence of length 0 is padding. is_part: only those
        of this rank's tokens, for `parted_draws`."""
        self._attention.plan(step, is_fused=self._shared.see is None)
        num_rows = len(step.seq_lens)
        (logits,) = first_for(num_rows, self._begin(step).decodes).run(step, num_rows)
        return logits if is_part else self._whole_logits.of(logits)

    def draw(
        self, logits: torch.Tensor, batch: DeviceSamplingBatch, tokens: torch.Tensor, *,
        has_edits: bool, has_filters: bool,
    ) -> None:  # fmt: skip
        """Draw one token per entry into `tokens`."""
        workspace = self._editing if has_edits else self._sampling
        chained = self.chained
        sample(logits, batch, tokens, workspace, has_edits=has_edits, has_filters=has_filters, chained=chained)

    def _begin(self, step: DeviceStep) -> Passes:
        passes = self._passes(has_adapters=step.kind.has_adapters)
        if self._adapters is not None and passes is self._adapted:
            self._adapters.begin(step)
        return passes

    def _passes(self, *, has_adapters: bool) -> Passes:
        return self._adapted if has_adapters else self._plain

    def _place(self, programs: Sequence[Program]) -> torch.Tensor:
        size = max((program.num_elements for program in programs), default=0)
        memory = torch.empty(size, dtype=self._weights.dtype, device=self.device)
        for program in programs:
            program.place(memory)
        return memory
