"""Compiles the kernels that an operator would launch, for a GPU that is not there, and reads what they take."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
SPILL = re.compile(r"\b(?:LDL|STL)\b")
MULTIPLE_OF_16 = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it was launched with."""

    kernel: JITFunction
    programs: int
    arguments: dict[str, object]
    options: dict[str, object]

    @property
    def name(self):
        return f"{self.kernel.fn.__module__.removeprefix('convattn.ops.')}.{self.kernel.fn.__name__}"


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers and bytes of stack of a thread, bytes of shared memory of a program."""

    registers: int
    stack: int
    shared: int
    instructions: int
    spills: int
    warps: int

    @property
    def programs_per_sm(self):
        by_registers = 65536 // (self.registers * 32 * self.warps)
        return min(by_registers, 227 * 1024 // (self.shared + 1024), 64 // self.warps)


def launches(monkeypatch, function, *args):
    """What ``function`` launches when it is given tensors on the meta device."""
    found = []

    def record(self, *args, grid, warmup, **kwargs):
        names = [p.name for p in self.params]
        given = dict(zip(names, args, strict=False))
        given.update((name, value) for name, value in kwargs.items() if name in names)
        options = {name: value for name, value in kwargs.items() if name not in names}
        programs = 1
        for extent in grid:
            programs *= extent
        found.append(Launch(self, programs, given, options))

    monkeypatch.setattr(JITFunction, "run", record)
    function(*args)
    return found


def compile_launch(launch, arch):
    """The kernel compiled for compute capability ``arch``, specialised as a launch specialises it."""
    signature, constants, attributes = {}, {}, {}
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


def resources(launch, arch):
    """What the kernel takes on compute capability ``arch``."""
    compiled = compile_launch(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return Resources(
        registers=found["REG"],
        stack=found["STACK"],
        shared=compiled.metadata.shared,
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", listing, re.MULTILINE)),
        spills=len(SPILL.findall(_products(listing))),
        warps=launch.options["num_warps"],
    )


def _products(listing):
    """From the first tensor-core product to the last: the walk over the halo; all of a kernel without any."""
    places = [found.start() for found in re.finditer(r"\bH(?:G)?MMA\b", listing)]
    return listing[places[0] : places[-1]] if places else listing


def _run(tool, *args):
    return subprocess.run([str(TOOLS / tool), *args], capture_output=True, text=True, check=True).stdout
