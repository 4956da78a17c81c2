"""Memory of a GPU that other processes of the machine map, with the handles of CUDA IPC.

All calls are for the thread's current CUDA context, and raise RuntimeError with the driver's words.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_char, c_size_t, c_uint, c_uint64, c_void_p

from octavo.kernels.cuda_cpp.module import check, cuda_driver

HANDLE_BYTES = 64
_ENABLE_PEER_ACCESS = 1  # CUipcMem_flags: lazily
_GRANULE = 2 << 20  # a handle is of a whole allocation, and smaller ones may share one


class _Handle(Structure):
    _fields_ = (("content", c_char * HANDLE_BYTES),)


def whole_granules(num_bytes: int) -> int:
    """The size of the allocation that has room for so many bytes, and that no other memory shares."""
    return -(-num_bytes // _GRANULE) * _GRANULE


def allocate(num_bytes: int) -> int:
    """num_bytes: whole granules -> its address."""
    address = c_void_p()
    check(cuda_driver().cuMemAlloc_v2(byref(address), c_size_t(num_bytes)), "allocating memory for other processes")
    return address.value or 0


def free(address: int) -> None:
    cuda_driver().cuMemFree_v2(c_uint64(address))


def whole_allocation(address: int) -> tuple[int, int]:
    """The first address, and the size in bytes, of the allocation that an address is part of."""
    base, size = c_void_p(), c_size_t()
    check(cuda_driver().cuMemGetAddressRange_v2(byref(base), byref(size), c_uint64(address)), "finding an allocation")
    return base.value or 0, size.value


def handle_of(address: int) -> bytes:
    """What another process maps a whole allocation with."""
    handle = _Handle()
    check(cuda_driver().cuIpcGetMemHandle(byref(handle), c_uint64(address)), "sharing memory with other processes")
    return bytes(handle)


def map_handle(handle: bytes) -> int:
    """Map another process's allocation -> its address here."""
    address, held = c_void_p(), _Handle.from_buffer_copy(handle)
    code = cuda_driver().cuIpcOpenMemHandle_v2(byref(address), held, c_uint(_ENABLE_PEER_ACCESS))
    check(code, "mapping another process's memory")
    return address.value or 0


def unmap(address: int) -> None:
    cuda_driver().cuIpcCloseMemHandle(c_uint64(address))
