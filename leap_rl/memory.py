"""Memory that an update frees is kept for the next one.

An update allocates some 30 MB and frees them again. glibc gives blocks of that size back to the kernel, which clears
every page before it hands it out once more: thousands of page faults an update, a tenth of its time.
"""

import ctypes
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
MADV_HUGEPAGE = 14  # of madvise(2)
HEAP = 256 << 20  # bytes of address space that the heap is given at once; what is not touched takes no memory
LARGEST = 2**31 - 1


@cache
def keep_freed_memory() -> None:
    """Has this process serve allocations from one heap that does not shrink, of huge pages where the kernel has them
    (``transparent_hugepage/enabled`` is not ``never``). Without glibc nothing happens."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST) or libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # older ones take no more
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    libc.mallopt(M_TOP_PAD, HEAP)
    libc.free(libc.malloc(16 << 20))  # the heap grows to make room for it, and by HEAP
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            libc.madvise(first, last - first, MADV_HUGEPAGE)
