"""The ops of `kernels/ops.py` as Triton kernels for an NVIDIA GPU, Hopper first.

Every function takes the tensors it writes, allocates nothing and never waits for the device, so a step can
be captured once as a CUDA graph and replayed: kernels read whatever changes from step to step from device
tensors, and grids depend only on captured shapes.

Imports torch and triton: only a GPU backend may import this package.
"""
