"""Kernels of other libraries, each behind a reason why it cannot run here; Octavo's own are the way without them."""
