"""Norms, activations, embedding and rotary on a GPU: microseconds per call in a chained graph.

python -m benchmarks.kernels.gpu_elementwise
"""

from __future__ import annotations

import torch

from benchmarks.kernels.gpu_attention import make_case
from octavo.kernels.cuda.timing import Call, graph_time_us, print_machine
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, rotary_kv_write
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.elementwise.elementwise import embedding


def measure(rows: int) -> list[float]:
    x, y, out = (torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    weight = torch.rand(1024, device="cuda")
    gate_up = torch.randn(rows, 6144, device="cuda", dtype=torch.bfloat16)
    gated = torch.empty(rows, 3072, device="cuda", dtype=torch.bfloat16)
    table = torch.randn(151936, 1024, device="cuda", dtype=torch.bfloat16)
    index = torch.randint(151936, (rows,), device="cuda", dtype=torch.int32)
    case = make_case([rows + 1], [rows], 16, 8, 128, 1)
    transform = HeadTransform.of(case.layer, DeviceWeights(torch.device("cuda"), torch.bfloat16))
    qkv = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
    q = torch.empty(rows, 2048, device="cuda", dtype=torch.bfloat16)
    calls: list[Call] = [
        lambda: norm.rms_norm(x, weight, 1e-6, out, chained=True),
        lambda: norm.add_rms_norm(x, y, weight, 1e-6, out, chained=True),
        lambda: norm.layer_norm(x, weight, None, 1e-6, out, chained=True),
        lambda: elementwise.gated_activation(gate_up, "silu", gated, chained=True),
        lambda: embedding(table, index, out, chained=True),
        lambda: rotary_kv_write(
            qkv, q, case.layer, case.pool, transform, slots=case.plan.slots, positions=case.positions, chained=True
        ),
    ]
    return [graph_time_us([call] * 20) for call in calls]


def main() -> None:
    print_machine()
    print("\nelement-wise kernels, bf16, us a call in a chained graph (hidden 1024, intermediate 3072, 16/8 heads)")
    print(f"{'rows':>5} {'rms_norm':>9} {'add_rms':>9} {'layer':>9} {'gated':>9} {'embed':>9} {'rotary':>9}")
    for rows in (1, 16, 256, 8192):
        print(f"{rows:>5} " + " ".join(f"{us:9.2f}" for us in measure(rows)), flush=True)


if __name__ == "__main__":
    main()
