"""Keeps the memory that an update frees for the next update.

An update allocates some 30 MB and frees them again. glibc returns blocks of that size to the kernel, which clears every
page before it hands it out again. That means thousands of page faults an update, and a tenth of its time.
"""

import ctypes
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # parameters of mallopt(3)
MADV_HUGEPAGE = 14  # advice of madvise(2)
HEAP = 256 << 20  # bytes of address space that the heap gets at once; untouched pages take no memory
LARGEST = 2**31 - 1


@cache
def keep_freed_memory() -> None:
    """Makes this process allocate from one heap that never shrinks, with huge pages if the kernel has them
    (``transparent_hugepage/enabled`` is not ``never``). Does nothing without glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST) or libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # older versions allow no more
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    libc.mallopt(M_TOP_PAD, HEAP)
    libc.free(libc.malloc(16 << 20))  # the heap grows by this much and by HEAP
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            libc.madvise(first, last - first, MADV_HUGEPAGE)
