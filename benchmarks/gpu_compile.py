"""Compiles the Triton kernels that an operator would launch, for a GPU that is not there, and reads what they take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
}
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
"""Bytes of shared memory of a multiprocessor, by compute capability times ten."""
SPILL = re.compile(r"\b(?:LDL|STL)\b")
MULTIPLE_OF_16 = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it was launched with."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The module and the function."""
        return f"{self.kernel.fn.__module__.removeprefix('convattn.ops.')}.{self.kernel.fn.__name__}"


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Args:
        registers: of a thread.
        stack: bytes of a thread.
        shared: bytes of a program.
        instructions: of the kernel.
        spills: loads and stores of the stack between the first product of the tensor cores and the last, the walk over
            the halo; those of the whole kernel where it has no such products.
        warps: of a program.
        programs_per_sm: that a multiprocessor holds at a time.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    spills: int
    warps: int
    programs_per_sm: int


def launches(function: Callable[[], object]) -> list[Launch]:
    """What ``function`` launches when it is given tensors on the meta device."""
    found = []

    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        names = [p.name for p in self.params]
        given = dict(zip(names, args, strict=False))
        given.update((name, value) for name, value in kwargs.items() if name in names)
        options = {name: value for name, value in kwargs.items() if name not in names}
        found.append(Launch(self, prod(grid), given, options))

    with mock.patch.object(JITFunction, "run", record):
        function()
    return found


def compile_launch(launch: Launch, arch: int) -> Any:
    """The kernel compiled for compute capability ``arch``, specialised as a launch specialises it."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(parameter.num,)] = MULTIPLE_OF_16
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(parameter.num,)] = MULTIPLE_OF_16
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def resources(launch: Launch, arch: int) -> Resources:
    """What the kernel takes on compute capability ``arch``."""
    compiled = compile_launch(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    taken = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    registers, warps, shared = taken["REG"], launch.options["num_warps"], compiled.metadata.shared
    return Resources(
        registers=registers,
        stack=taken["STACK"],
        shared=shared,
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", listing, re.MULTILINE)),
        spills=len(SPILL.findall(_products(listing))),
        warps=warps,
        programs_per_sm=min(65536 // (registers * 32 * warps), SHARED[arch] // (shared + 1024), 64 // warps),
    )


def _products(listing: str) -> str:
    places = [found.start() for found in re.finditer(r"\b(?:HG?MMA|UTC\w*MMA)\b", listing)]
    return listing[places[0] : places[-1]] if places else listing


def _run(tool: str, *args: str) -> str:
    return subprocess.run([str(TOOLS / tool), *args], capture_output=True, text=True, check=True).stdout
