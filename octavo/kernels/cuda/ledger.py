"""What a model takes on a GPU beside KV blocks, before it is loaded. Imports neither torch nor triton."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from math import prod

from octavo.kernels.attention import AttentionChoice
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda import attention_sizes, sizes
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp import shape as cuda_cpp
from octavo.kernels.cuda_cpp.quantized_format import format_of, held_bytes, sorted_format_of
from octavo.kernels.device import StepLimits
from octavo.kernels.kv_layout import KV_ELEMENTS, LARGEST_CODE, KVDType, KVLayout
from octavo.kernels.ledger import Contents, Entry, Ledger
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear, Shape
from octavo.kernels.program.fuse import Fusions, fuse
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import Recording, share_buffers
from octavo.kernels.triton.coded import coded_format

#: a context with torch's and cuBLAS's kernels and workspaces, and what torch's allocator rounds up to; on an H200
#: with torch 2.11 two models took 759 and 842 MiB
_SYSTEM_BYTES = 800 << 20
#: a captured launch in all its graphs. An estimate, as is the number of graphs: steps are captured as they come.
_LAUNCH_BYTES = 1 << 10
_NUM_GRAPHS = 100


def device_ledger(
    model: ModelRecording,
    kv: KVLayout,
    limits: StepLimits,
    dtype: KVDType,
    gpu: GPU,
    attention: AttentionChoice,
    *,
    traced: bool,
    captures: bool,
) -> Ledger:
    layers, is_fixed, element_bytes = model.body.layers, attention == "deterministic", KV_ELEMENTS[dtype].num_bytes
    return Ledger(
        (
            *_weights(model, limits, element_bytes, dtype, gpu, is_fixed=is_fixed),
            *_activations(model, limits, element_bytes, dtype, gpu, is_fused=not (traced or is_fixed)),
            *_workspace(model, limits, gpu, dtype, has_parts=not is_fixed),
            *_experts(model, limits, element_bytes, dtype, gpu),
            *Contents.of((model.body, model.head)).moving_entries(lambda layer: _expert_bytes(layer, element_bytes)),
            *_adapters(model, limits, element_bytes),
            *_attention(layers, kv, limits, dtype, gpu, attention),
            *_rows(kv, limits),
            *([_graphs(model)] if captures else []),
            Entry("system", _SYSTEM_BYTES, "CUDA context, libraries, an estimate"),
        )
    )


def _weights(
    model: ModelRecording, limits: StepLimits, element_bytes: int, dtype: KVDType, gpu: GPU, *, is_fixed: bool
) -> Iterator[Entry]:
    contents = Contents.of((model.body, model.head))
    held = {name: prod(table.shape) for name, table in contents.tables.items()}
    held |= {name: prod(latent.up.shape) for name, latent in contents.latents.items()}
    formats: dict[str, tuple[Linear, list[tuple[int, str]]]] = {}
    stacks = [(stack, form) for stack in contents.stacks if (form := coded_format.format_of(stack.parts)) is not None]
    coded = {linear.name for stack, _ in stacks for linear in stack.experts}
    for linear in contents.linears.values():
        is_product = linear.name in contents.products
        pieces = _quantised(linear, dtype, gpu, is_fixed=is_fixed) if is_product else []
        if pieces:
            formats[linear.name] = linear, pieces
        is_dense = not pieces and linear.name not in coded
        held |= {part.name: prod(part.shape) for part in (*(linear.parts if is_dense else ()), *linear.biases)}
    yield Entry("weights", element_bytes * sum(held.values()), f"{len(held):,} tensors in {dtype}")
    if stacks:
        codes = sum(coded_format.stack_bytes(form, stack) for stack, form in stacks)
        labels = ", ".join(dict.fromkeys(form.label for _, form in stacks))
        yield Entry("weights", codes, f"{len(coded):,} products of experts as {labels}")
    if formats:
        codes = sum(num_bytes for _, pieces in formats.values() for num_bytes, _ in pieces)
        labels = ", ".join(dict.fromkeys(label for _, pieces in formats.values() for _, label in pieces))
        yield Entry("weights", codes, f"{len(formats):,} products as {labels}")
        rows = max(limits.max_num_tokens, limits.max_num_seqs)
        scratch = sizes.scratch_shapes([linear for linear, _ in formats.values()], rows, dtype, gpu)
        num_bytes = element_bytes * scratch["dense"] + scratch["codes"]
        num_bytes += 4 * (scratch["scales"] + scratch["sums"] + scratch["told"])
        yield Entry("workspace", num_bytes, "quantised products of many rows")
    vectors = 4 * sum(prod(vector.shape) for vector in contents.vectors.values())
    yield Entry("weights", vectors + contents.rotary_bytes(limits.max_model_len), "norms and angles in float32")


def _quantised(linear: Linear, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> list[tuple[int, str]]:
    """Bytes and formats of the pieces in which a product stays quantised; none: it is dense."""
    form = format_of(linear, dtype, gpu, is_fixed=is_fixed) or sorted_format_of(linear, dtype, gpu, is_fixed=is_fixed)
    if form is not None:
        shape = linear.out_features, linear.in_features
        return [(held_bytes(form, *shape, len(linear.parts)), form.label)]
    pieces = coded_format.pieces_of(linear, is_fixed=is_fixed)
    return [(coded_format.held_bytes(one, [part.shape for part in parts]), one.label) for parts, one in pieces]


def _activations(
    model: ModelRecording, limits: StepLimits, element_bytes: int, dtype: KVDType, gpu: GPU, *, is_fused: bool
) -> Iterator[Entry]:
    """Passes share memory, and heads share other memory; the widest of each are those with the least fused."""
    tokens, seqs = limits.max_num_tokens, limits.max_num_seqs

    def quantises(num_rows: int, linear: Linear) -> bool:
        is_own = is_fused and format_of(linear, dtype, gpu, is_fixed=False) is not None
        return is_own and sizes.become_codes(linear, num_rows, dtype, gpu)

    def peer_slots(ranks: int) -> Shape:
        most = sizes.peer_bytes(ranks, model.whole.instructions, tokens, element_bytes)
        return sizes.peer_slots(ranks, most)

    fusions = Fusions(attention=is_fused, adapters=is_fused, quantises=partial(quantises, seqs))
    chunks = model.body if model.gives_logits else model.whole
    body = Fusions(adapters=is_fused, quantises=partial(quantises, tokens))
    passes = max(elements(chunks, body, tokens), elements(model.whole, fusions, seqs))
    yield Entry("activations", element_bytes * passes, f"a step of {tokens:,} tokens in {dtype}")
    own, vocab = model.head.kept[0].width, limits.vocab_size
    if not model.gives_logits:
        yield Entry("activations", element_bytes * tokens * own, "hidden states for the next stage")
        if any(each.op == "all_reduce" for each in model.body.instructions):
            numbers = (2, sizes.MAX_PEERS)  # one of them takes the most
            yield _entry("results of other ranks", [max(peer_slots(ranks) for ranks in numbers)])
        return
    heads = elements(model.head, fusions, seqs)
    yield Entry("activations", element_bytes * heads, f"logits of {seqs:,} sequences")
    if own < vocab:  # of a rank, which gathers the others'
        yield Entry("activations", element_bytes * seqs * (own + 2 * vocab), "logits of all ranks")
        ranks = round(vocab / own)
        if 1 < ranks <= sizes.MAX_PEERS:
            yield _entry("results of other ranks", [peer_slots(ranks)])
        parted = sizes.parted_draw(ranks, seqs), sizes.parted_top_k(ranks, seqs)
        yield _entry("draws from parts", [shape for shapes in parted for shape in shapes.values()])


def elements(recording: Recording, fusions: Fusions, max_rows: int) -> int:
    fused = fuse(recording, fusions)
    return sizes.buffer_elements(share_buffers(fused.instructions, fused.given, fused.kept), max_rows)


def _workspace(
    model: ModelRecording, limits: StepLimits, gpu: GPU, dtype: KVDType, *, has_parts: bool
) -> Iterator[Entry]:
    seqs, vocab = limits.max_num_seqs, limits.vocab_size
    if has_parts and gpu.capability[0] == 9 and dtype != "float32":
        yield _entry("sums of split products", [sizes.partial_sums(model.whole.instructions, seqs)])
    if not model.gives_logits:
        seqs, vocab = 1, 1
    edited = min(seqs, sizes.MAX_EDITED_ROWS)
    for entries, edits in ((seqs, False), (edited, True)):
        scan, rest = sizes.logits_scan(entries, vocab), sizes.sampling_workspace(entries, vocab, edits=edits)
        yield _entry("edited logits" if edits else "draws", [*scan.values(), *rest.values()])
    yield _entry("masks of grammars", [sizes.token_masks(seqs, vocab)])
    yield Entry("workspace", sizes.STAGING_BYTES, "uploads")


def _experts(
    model: ModelRecording, limits: StepLimits, element_bytes: int, dtype: KVDType, gpu: GPU
) -> Iterator[Entry]:
    layers = list(Contents.of((model.body, model.head)).mixtures.values())
    if layers:
        rows = max(limits.max_num_tokens, limits.max_num_seqs)
        lists = sizes.num_bytes(sizes.mixture_lists(layers, rows).values())
        elements = [*sizes.mixture_pairs(layers, rows).values(), *sizes.few_mixture_rows(layers).values()]
        pairs = element_bytes * sum(elements)
        codes, scales = sizes.mixture_codes(layers, rows, dtype, gpu).values()
        yield Entry("workspace", lists + pairs + codes + 4 * scales, f"experts of {rows:,} tokens")


def _expert_bytes(layer: Mixture, element_bytes: int) -> int:
    total = 0
    for stack in (layer.gate_up, layer.down):
        form, one = coded_format.format_of(stack.parts), stack.experts[0]
        dense = one.parts if form is None else ()
        total += element_bytes * sum(prod(part.shape) for part in (*dense, *one.biases))
        total += 0 if form is None else coded_format.stack_bytes(form, stack) // len(stack.experts)
    return total


def _adapters(model: ModelRecording, limits: StepLimits, element_bytes: int) -> Iterator[Entry]:
    contents = Contents.of((model.body, model.head))
    if modules := list(contents.adapted.values()):
        tokens, seqs = limits.max_num_tokens, limits.max_num_seqs
        yield from contents.adapter_entries(element_bytes)
        shapes = [*sizes.adapter_lists(modules, tokens, seqs).values(), sizes.shrunk_rows(modules, max(tokens, seqs))]
        yield _entry("rows of adapters", shapes)


def _attention(
    layers: list[AttentionLayer], kv: KVLayout, limits: StepLimits, dtype: KVDType, gpu: GPU,
    asked: AttentionChoice,
) -> Iterator[Entry]:  # fmt: skip
    seqs = limits.max_num_seqs
    kinds = dict.fromkeys((layer.group, layer.window) for layer in layers)
    plan = attention_sizes.attention_plan(seqs, limits.max_num_tokens)
    yield _entry("plans of attention", [*plan.values()] * len(kinds))
    if asked == "deterministic":
        yield _entry("partial results of attention", attention_sizes.fixed_attention_workspace(layers).values())
        return
    if any(layer.latent is not None for layer in layers):
        yield _entry("partial results of attention", attention_sizes.latent_workspace(layers, gpu).values())
        return
    takes_cuda = asked not in ("hopper", "triton") and seqs <= cuda_cpp.MAX_SEQUENCES
    ours = [layer for layer in layers if takes_cuda and not cuda_cpp.why_not(layer, dtype, kv, gpu)]
    if ours:
        has_codes = kv.dtype in LARGEST_CODE
        yield _entry("decodes in CUDA C++", cuda_cpp.workspace(ours, seqs, gpu, 1, has_codes=has_codes))
        short = cuda_cpp.short_chunk(ours, seqs, limits.short_chunk if len(ours) == len(layers) else 1)
        if short > 1:
            yield _entry(
                f"chunks of up to {short} tokens in CUDA C++",
                cuda_cpp.workspace(ours, seqs, gpu, short, has_codes=has_codes),
            )
    if len(ours) < len(layers):
        yield _entry("decodes in Triton", attention_sizes.decode_workspace(seqs, layers).values())


def _rows(kv: KVLayout, limits: StepLimits) -> Iterator[Entry]:
    num_blocks = -(-limits.max_model_len // kv.block_size) + 1
    shapes = sizes.device_rows(len(kv.groups), limits.max_num_seqs, num_blocks)
    yield Entry("rows", sizes.num_bytes(shapes.values()), f"{limits.max_num_seqs:,} block tables", is_late=True)


def _graphs(model: ModelRecording) -> Entry:
    launches = len(model.whole.instructions) * _NUM_GRAPHS
    return Entry("graphs", launches * _LAUNCH_BYTES, f"about {_NUM_GRAPHS} of them, an estimate", is_late=True)


def _entry(what: str, shapes: Iterable[Shape]) -> Entry:
    return Entry("workspace", sizes.num_bytes(shapes), what)
