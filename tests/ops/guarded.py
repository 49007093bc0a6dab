"""Guard pages around every tensor that the CPU kernels are told of: one that reads or writes past it stops there.

A tensor's memory is copied to where readable memory ends (or begins), the kernel works on the copy, and what it wrote
is copied back. For the tests, under ``CONVATTN_GUARD=1``; ``csrc/guarded_scratch.h`` guards the kernels' own memory.
"""

import ctypes
import mmap

from convattn.ops import _abi

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Region:
    """A copy of some bytes between two pages that nobody may touch, against the one behind or the one before it."""

    def __init__(self, address, size, side):
        self.source, self.size = address, size
        room = -(-size // PAGE) * PAGE
        self.mapped = room + 2 * PAGE
        self.base = _libc.mmap(None, self.mapped, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if self.base in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"no memory for a guarded copy of {size} bytes")
        if room and _libc.mprotect(self.base + PAGE, room, mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
        self.address = self.base + PAGE + (room - size if side == "behind" else 0)
        self.before = ctypes.string_at(address, size)
        ctypes.memmove(self.address, self.before, size)

    def close(self):
        """Copy back what has changed, and give the memory back."""
        if ctypes.string_at(self.address, self.size) != self.before:
            ctypes.memmove(self.source, self.address, self.size)
        _libc.munmap(self.base, self.mapped)


def kernel_of(library, function):
    """What ``_abi.kernel`` makes of a library's function, of one that stands between."""

    def run(*arguments):
        pointers = (ctypes.c_void_p(one) if one is None or isinstance(one, int) else one for one in arguments)
        if getattr(library, function)(*pointers):
            raise MemoryError(function)

    return run


class Guard:
    """Stands between the package and its library; ``side`` is that of a tensor which touches a guard page."""

    def __init__(self, side="behind"):
        self.library, self.offsets_of = _abi.library, _abi._offsets_of
        self.side, self.regions, self.calls = side, [], 0

    def region(self, address, size):
        """The address of a guarded copy that lives until the next call has returned."""
        self.regions.append(Region(address, size, self.side))
        return self.regions[-1].address

    def address_of(self, x):
        """Instead of ``_abi.address_of``."""
        if not x.numel():
            return self.region(x.data_ptr(), 0)
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return self.region(x.data_ptr(), (last + 1) * x.element_size())

    def guarded_offsets(self, nbhd):
        """Instead of ``_abi._offsets_of``."""
        found = self.offsets_of(nbhd)
        return type(found).from_address(self.region(ctypes.addressof(found), ctypes.sizeof(found)))

    def __getattr__(self, name):
        function = getattr(self.library(), name)

        def call(*arguments):
            self.calls += 1
            try:
                return function(*arguments)
            finally:
                self.close_regions()

        return call

    def kernel(self, function, addresses):
        """Instead of ``_abi.kernel``."""
        return kernel_of(self, function)

    def close_regions(self):
        """Copy back what the call has written."""
        while self.regions:
            self.regions.pop().close()

    def install(self, set_attribute=setattr):
        """Guard every call from now on."""
        set_attribute(_abi, "library", lambda: self)
        set_attribute(_abi, "address_of", self.address_of)
        set_attribute(_abi, "_offsets_of", self.guarded_offsets)
        set_attribute(_abi, "kernel", self.kernel)
