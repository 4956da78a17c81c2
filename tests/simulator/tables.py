"""A cost table that follows a formula, so that what lies between its points is known too."""

from octavo.simulator.cost_table import CostTable, DecodePoint, EngineSizes, HostCost, MixedPoint

SIZES = EngineSizes(
    num_blocks=1001,
    block_size=16,
    block_bytes=1024,
    windows=[None],
    max_model_len=4096,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    is_asynchronous=False,
)


def seconds(decodes: int, context: int, prefill: int = 0, work: float = 0.0) -> float:
    """context: of all decodes together."""
    return 0.002 + 1e-4 * decodes + 2e-4 * prefill + 1e-7 * context + 3e-8 * work


def made_table(sizes: EngineSizes = SIZES) -> CostTable:
    decode = [
        DecodePoint(batch, context, seconds(batch, batch * context))
        for batch in (1, 4, 16, 64)
        for context in (64, 512, 2048)
    ]
    mixed = [
        MixedPoint(prefill, start, decodes, 256, seconds(decodes, decodes * 256, prefill, _work(prefill, start)))
        for prefill in (8, 128, 512)
        for start, decodes in ((0, 0), (1024, 0), (0, 16), (0, 64))
    ]
    return CostTable("made", "2026-11-29", {}, sizes, HostCost(1e-5, 1e-6, 1e-8), decode, mixed)


def _work(prefill: int, start: int) -> float:
    return prefill * (start + (prefill + 1) / 2)
