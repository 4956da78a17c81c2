"""The cpu backend: C++ kernels behind ctypes."""
