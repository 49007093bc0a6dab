"""Calls of the CPU kernels in a file: what went in and what came out, for ``replay.cpp`` to repeat anywhere.

The tests of this machine compare these answers with a float64 reference. A processor that has no Python and no torch,
an emulated one, or a library of another compiler then has to give them again: ``tools/test_processors.sh``.
"""

import ctypes
import struct

import torch

from convattn.ops import _abi
from tests.ops.guarded import kernel_of

MAGIC = b"convattn calls 1\n"
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, torch.int32: 4}
"""``Kind`` of ``replay.cpp``."""


class Recorder:
    """Stands between the package and its library, and writes down every call that differs from those before it.

    Args:
        file: Where the calls go, opened for binary writing.
        most_bytes: Of the memory of a call; those that need more are left out.
        most_calls: Of a function.
    """

    def __init__(self, file, most_bytes=150_000, most_calls=60):
        self.file, self.most_bytes, self.most_calls = file, most_bytes, most_calls
        self.library, self.address_of, self.offsets_of = _abi.library, _abi.address_of, _abi._offsets_of
        self.told, self.seen = [], {}
        file.write(MAGIC)

    def install(self, set_attribute=setattr):
        """Record every call from now on."""
        set_attribute(_abi, "library", lambda: self)
        set_attribute(_abi, "address_of", self.noted_address)
        set_attribute(_abi, "_offsets_of", self.noted_offsets)
        set_attribute(_abi, "kernel", lambda function, addresses: kernel_of(self, function))

    def noted_address(self, x):
        """Instead of ``_abi.address_of``."""
        address = self.address_of(x)
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else -1
        self.told.append((address, address + (last + 1) * x.element_size(), KINDS[x.dtype]))
        return address

    def noted_offsets(self, nbhd):
        """Instead of ``_abi._offsets_of``."""
        found = self.offsets_of(nbhd)
        begin = ctypes.addressof(found)
        self.told.append((begin, begin + ctypes.sizeof(found), KINDS[torch.int32]))
        return found

    def __getattr__(self, name):
        function = getattr(self.library(), name)

        def call(*arguments):
            regions, self.told = merged(self.told), []
            before = [ctypes.string_at(begin, end - begin) for begin, end, _ in regions]
            failed = function(*arguments)
            if not failed and self.wanted(name, arguments, before):
                after = [ctypes.string_at(begin, end - begin) for begin, end, _ in regions]
                self.write(name, regions, before, after, arguments)
            return failed

        return call

    def wanted(self, name, arguments, before):
        """Whether a call is new and small."""
        shape = [bytes(one._obj) for one in arguments if not isinstance(pointed(one), _abi.Map) and pointed(one)]
        key = (tuple(len(part) for part in before), *(part[:44] for part in shape))
        seen = self.seen.setdefault(name, set())
        if key in seen or len(seen) >= self.most_calls or sum(map(len, before)) > self.most_bytes:
            return False
        seen.add(key)
        return True

    def write(self, name, regions, before, after, arguments):
        """Write one call."""
        self.file.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(regions)))
        for (begin, end, kind), old, new in zip(regions, before, after, strict=True):
            self.file.write(struct.pack("<IQ", kind, end - begin) + old + new)
        self.file.write(struct.pack("<I", len(arguments)))
        for one in arguments:
            self.file.write(written(one, regions))


def pointed(argument):
    """The structure that an argument points to; None where it is no structure."""
    return getattr(argument, "_obj", None)


def merged(told):
    """Regions of memory that do not overlap, and hold all that a call was told of."""
    found = []
    for begin, end, kind in sorted(told):
        if found and begin < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]), kind)
        else:
            found.append((begin, end, kind))
    return found


def written(argument, regions):
    """An argument as bytes: a structure with its pointers, a pointer, or a number."""
    if isinstance(argument, ctypes.c_float):
        return b"F" + struct.pack("<f", argument.value)
    found = pointed(argument)
    if found is None:
        return b"P" + place(argument.value, regions)
    names = [name for name, kind in found._fields_ if kind is ctypes.c_void_p]
    text = b"S" + struct.pack("<I", ctypes.sizeof(found)) + bytes(found) + struct.pack("<I", len(names))
    for name in names:
        text += struct.pack("<I", getattr(type(found), name).offset) + place(getattr(found, name), regions)
    return text


def place(address, regions):
    """A pointer as the number of its region and the bytes from there; -1 for null."""
    for index, (begin, end, _) in enumerate(regions):
        if address is not None and begin <= address < max(end, begin + 1):
            return struct.pack("<iQ", index, address - begin)
    return struct.pack("<iQ", -1, 0)
