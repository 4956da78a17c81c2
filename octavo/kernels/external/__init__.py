"""Kernels of other libraries. Each reports why it cannot run here, and Octavo's own kernels work without them."""
