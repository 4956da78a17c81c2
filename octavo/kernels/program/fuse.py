"""Fuses a recorded forward pass into fewer, larger instructions before it is bound to kernels.

    rotary_kv_write, paged_attention   ->  attention                         in a step of decodes alone
    linear, add_rms_norm               ->  linear with residual, rms_norm  ┐ few rows: reading weights is the cost
    linear, add                        ->  linear with residual            ┘  and so for a mixture
    linear, add_rms_norm               ->  linear_add_rms_norm               more rows: the norm sums the parts
    linear, gated_activation           ->  linear with gate                  if the product's tiling takes it
    rms_norm, linear                   ->  linear with norm                  very few rows: a kernel holds whole rows
    rms_norm, mixture                  ->  mixture with norm                 if its router's kernel takes it
    rms_norm, linear                   ->  quantising_linear               ┐ rows that become fp8 before a product do so
    add_rms_norm, linear               ->  quantising_linear               │ in what gives them; and the product before
    gated_activation, linear           ->  quantising_linear               ┘ it may leave its scales to that, or to
                                                                             attention
    rms_norm, linear, and so on        ->  the same; the first deals the inputs of rows as the product reads them
    mixture, add_rms_norm              ->  mixture_add_rms_norm              its weighted sums have whole rows
    all_reduce, add_rms_norm           ->  all_reduce_add_rms_norm           between ranks
    add_adapters, gated_activation     ->  add_adapters with gate
    linear, add_adapters               ->  linear with adapters              and what fuses with a product then does

A Llama layer of nine instructions becomes five. A device lists in `Fusions` what its kernels do in one launch. Buffers
are assigned after fusing, so a fused instruction never writes its result to a buffer that it still reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.program.recorder import Instruction, Recording, Value

#: two neighbours, where only the second reads the first's result -> their replacement, or None
Rule = Callable[[Instruction, Instruction], list[Instruction] | None]


@dataclass(frozen=True, slots=True)
class Fusions:
    """What a device's kernels for one range of row counts do in one launch."""

    attention: bool = False
    residual: bool = False
    all_reduce: bool = False
    adapters: bool = False
    mixture_norm: bool = False
    parts: bool = False  # a product leaves partial sums, and the next norm adds them up
    fuses: Callable[[Linear, bool], bool] = lambda weight, gated: True  # whether anything but that; a gate
    quantises: Callable[[Linear], bool] = lambda weight: False  # whether a product's rows become fp8 before it
    deals: Callable[[Linear], bool] = lambda weight: False  # whether a product may read dealt rows
    leaves_scales: bool = False  # such a product is faster without scales, which what makes the next one's rows can do
    scales_projection: Callable[[AttentionLayer], bool] = lambda layer: False  # whether attention can, too
    takes_norm: Callable[[int, int], bool] = lambda columns, depth: False  # whether such a product does
    takes_gate: Callable[[int, int], bool] = lambda columns, depth: False
    routes_norm: Callable[[Mixture], bool] = lambda layer: False  # whether a mixture's router does
    adds_both: Callable[[int, int], bool] = lambda columns, depth: False  # whether a product adds residual and bias


def fuse(recording: Recording, fusions: Fusions) -> Recording:
    """The same computation in fewer instructions."""
    recording = _with_own_queries(recording)
    if fusions.adapters:
        recording = _apply(_apply(recording, _adapted_gate), _adapted)
    if fusions.attention:
        recording = _apply(recording, _attention)
    if fusions.all_reduce:
        recording = _apply(recording, _all_reduce)
    recording = _apply(recording, lambda first, second: _quantised(first, second, fusions))
    if fusions.leaves_scales:
        recording = _with_scales_left(recording, fusions)
    if fusions.parts:
        recording = _apply(recording, lambda first, second: _parts(first, second, fusions))
    if fusions.mixture_norm:
        recording = _apply(recording, _mixture_norm)
    if fusions.residual:
        recording = _apply(recording, lambda first, second: _residual(first, second, fusions))
    recording = _apply(recording, lambda first, second: _gate(first, second, fusions))
    recording = _apply(recording, lambda first, second: _norm(first, second, fusions))
    return _apply(recording, lambda first, second: _dealt(first, second, fusions))


def without_adapters(recording: Recording) -> Recording:
    """The same computation for steps in which no token has an adapter."""
    plain: dict[Value, Value] = {}
    instructions = []
    for each in recording.instructions:
        inputs = tuple(plain.get(value, value) for value in each.inputs)
        if each.op in ("add_adapters", "add_table_adapters"):
            plain[each.outputs[0]] = inputs[0]
        else:
            instructions.append(replace(each, inputs=inputs))
    kept = tuple(plain.get(value, value) for value in recording.kept)
    return replace(recording, instructions=instructions, kept=kept)


def _with_own_queries(recording: Recording) -> Recording:
    """Give rotated queries their own memory: if many threads work on a row, one may still read what another would
    overwrite."""
    moved: dict[Value, Value] = {}
    instructions = []
    for instruction in recording.instructions:
        inputs = tuple(moved.get(value, value) for value in instruction.inputs)
        outputs = instruction.outputs
        if instruction.op == "rotary_kv_write":
            (q,) = outputs
            moved[q] = Value(q.width, -1 - len(moved), q.width)
            outputs = (moved[q],)
        instructions.append(replace(instruction, inputs=inputs, outputs=outputs))
    kept = tuple(moved.get(value, value) for value in recording.kept)
    return replace(recording, instructions=instructions, kept=kept)


def _apply(recording: Recording, rule: Rule) -> Recording:
    uses = Counter(value for instruction in recording.instructions for value in instruction.inputs)
    uses.update(recording.kept)
    result: list[Instruction] = []
    rest = list(reversed(recording.instructions))
    while rest:
        first = rest.pop()
        fused = None
        if rest and first.outputs and first.outputs[0] in rest[-1].inputs and uses[first.outputs[0]] == 1:
            fused = rule(first, rest[-1])
        if fused is None:
            result.append(first)
        else:
            rest.pop()
            result += fused
    return replace(recording, instructions=result)


def _attention(first: Instruction, second: Instruction) -> list[Instruction] | None:
    if (first.op, second.op) != ("rotary_kv_write", "paged_attention"):
        return None
    return [Instruction("attention", first.inputs, second.outputs, second.arguments)]


def _all_reduce(first: Instruction, second: Instruction) -> list[Instruction] | None:
    if (first.op, second.op) != ("all_reduce", "add_rms_norm") or second.inputs[0] is not first.outputs[0]:
        return None
    inputs = (*first.inputs, second.inputs[1])
    return [Instruction("all_reduce_add_rms_norm", inputs, second.outputs, second.arguments)]


def _adapted_gate(first: Instruction, second: Instruction) -> list[Instruction] | None:
    if (first.op, second.op) != ("add_adapters", "gated_activation") or not first.arguments["module"].has_gates:
        return None
    return [replace(first, outputs=second.outputs, arguments=first.arguments | {"gate": second.arguments["kind"]})]


def _adapted(first: Instruction, second: Instruction) -> list[Instruction] | None:
    if (first.op, second.op) != ("linear", "add_adapters") or "gate" in second.arguments:
        return None
    adapters = {"adapters": second.arguments["module"]}
    return [replace(first, outputs=second.outputs, arguments=first.arguments | adapters)]


def _quantised(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if second.op != "linear" or "adapters" in second.arguments or not fusions.quantises(second.arguments["weight"]):
        return None
    inputs, outputs = (*first.inputs, *second.inputs[1:]), (*second.outputs, *first.outputs[1:])
    if first.op == "gated_activation":
        before = {"activation": first.arguments["kind"]}
    elif first.op in ("rms_norm", "add_rms_norm"):
        before = {"norm_weight": first.arguments["weight"], "eps": first.arguments["eps"]}
    else:
        return None
    return [Instruction("quantising_linear", inputs, outputs, second.arguments | before)]


def _with_scales_left(recording: Recording, fusions: Fusions) -> Recording:
    """Products leave their scales to the next instruction, if it makes fp8 of their result, or attends with it."""
    uses = Counter(value for instruction in recording.instructions for value in instruction.inputs)
    uses.update(recording.kept)
    result = [*recording.instructions]
    for i in range(len(result) - 1):
        first, second = result[i : i + 2]
        if first.op not in ("linear", "quantising_linear") or not _takes_scales(second, fusions):
            continue
        weight, is_given = first.arguments["weight"], second.inputs[0] is first.outputs[0]
        if not is_given or uses[first.outputs[0]] > 1 or weight.biases or "adapters" in first.arguments:
            continue
        if fusions.quantises(weight):
            result[i] = replace(first, op="quantising_linear", arguments=first.arguments | {"leaves_scales": True})
            result[i + 1] = replace(second, arguments=second.arguments | {"left_by": weight})
    return replace(recording, instructions=result)


def _takes_scales(instruction: Instruction, fusions: Fusions) -> bool:
    if instruction.op == "attention":
        return fusions.scales_projection(instruction.arguments["layer"])
    return instruction.op == "quantising_linear"


def _residual(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if first.op not in ("linear", "mixture") or (first.op == "linear" and not _adds_residual(first, fusions)):
        return None
    product = first.outputs[0]
    if second.op == "add":
        (residual,) = (value for value in second.inputs if value is not product)
        return [replace(first, inputs=(*first.inputs, residual), outputs=second.outputs)]
    if second.op == "add_rms_norm" and second.inputs[0] is product:
        normed, total = second.outputs
        linear = replace(first, inputs=(*first.inputs, second.inputs[1]), outputs=(total,))
        return [linear, Instruction("rms_norm", (total,), (normed,), second.arguments)]
    return None


def _adds_residual(product: Instruction, fusions: Fusions) -> bool:
    weight, shape = product.arguments["weight"], (product.outputs[0].width, product.inputs[0].width)
    return fusions.fuses(weight, False) and (not weight.biases or fusions.adds_both(*shape))


def _parts(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if (first.op, second.op) != ("linear", "add_rms_norm") or first.arguments["weight"].biases:
        return None
    if second.inputs[0] is not first.outputs[0] or fusions.deals(first.arguments["weight"]):
        return None
    arguments = {"weight": first.arguments["weight"], "norm_weight": second.arguments["weight"]}
    arguments |= {"eps": second.arguments["eps"], "adapters": first.arguments.get("adapters")}
    return [Instruction("linear_add_rms_norm", (*first.inputs, second.inputs[1]), second.outputs, arguments)]


def _mixture_norm(first: Instruction, second: Instruction) -> list[Instruction] | None:
    if (first.op, second.op) != ("mixture", "add_rms_norm") or second.inputs[0] is not first.outputs[0]:
        return None
    arguments = first.arguments | {"norm_weight": second.arguments["weight"], "eps": second.arguments["eps"]}
    return [Instruction("mixture_add_rms_norm", (*first.inputs, second.inputs[1]), second.outputs, arguments)]


def _gate(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if (first.op, second.op) != ("linear", "gated_activation") or "adapters" in first.arguments:
        return None
    shape = second.outputs[0].width, first.inputs[0].width
    if not fusions.takes_gate(*shape) or not fusions.fuses(first.arguments["weight"], True):
        return None
    return [replace(first, outputs=second.outputs, arguments=first.arguments | {"gate": second.arguments["kind"]})]


def _norm(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if first.op != "rms_norm" or second.inputs[0] is not first.outputs[0] or not _takes_norm(second, fusions):
        return None
    norm = {"norm_weight": first.arguments["weight"], "eps": first.arguments["eps"]}
    return [replace(second, inputs=(*first.inputs, *second.inputs[1:]), arguments=second.arguments | norm)]


def _takes_norm(product: Instruction, fusions: Fusions) -> bool:
    if product.op == "mixture":
        return fusions.routes_norm(product.arguments["layer"])
    if product.op != "linear" or "adapters" in product.arguments:  # they read the normed rows, too
        return False
    shape = product.outputs[0].width, product.inputs[0].width
    return fusions.takes_norm(*shape) and fusions.fuses(product.arguments["weight"], "gate" in product.arguments)


def _dealt(first: Instruction, second: Instruction, fusions: Fusions) -> list[Instruction] | None:
    if first.op not in ("rms_norm", "add_rms_norm", "gated_activation") or second.op != "linear":
        return None
    weight, is_read = second.arguments["weight"], second.inputs[0] is first.outputs[0]
    if not is_read or second.arguments.keys() != {"weight"} or not fusions.deals(weight):
        return None
    return [
        replace(first, arguments=first.arguments | {"deals_for": weight}),
        replace(second, arguments=second.arguments | {"is_dealt": True}),
    ]
