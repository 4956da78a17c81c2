"""The ops of `kernels/ops.py` as Triton kernels for an NVIDIA GPU, Hopper first.

Every function takes the tensors it writes, allocates nothing and never waits for the device, so that a
step can be captured once as a CUDA graph and replayed: what changes from step to step is read from
device tensors, and grids depend only on captured shapes.

    plan.py               seq_lens -> equal work items, once a step, for all layers
    decode_attention.py   one new token a sequence: norm, rotate, write, attend, in one kernel
    prefill_attention.py  a chunk of new tokens a sequence
    rotary_kv_write.py    norm, rotate, write, for steps that hold chunks
    linear.py             a few rows times a weight, at the speed of reading the weight
    norm.py elementwise.py embedding.py
    sampling.py logprobs.py random.py

Imports torch and triton: only a GPU backend may import this package.
"""
