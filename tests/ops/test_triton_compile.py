"""Every GPU kernel compiles, for GPUs that are not there, and takes no more than leaves two programs to a processor.

Triton's interpreter accepts programs that its compiler rejects, and a step too large spills thousands of registers.
"""

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from benchmarks.gpu_cases import (
    BFLOAT,
    FLOAT,
    HALF,
    RESNET,
    SCATTERED,
    STRIDED,
    STRIDED_RESNET,
    WINDOW,
    ZEROS,
    attention,
    offset_wise,
    pixel_shift_attention,
)
from benchmarks.gpu_compile import launches, resources
from convattn.ops import Neighborhood

SHARED_OF_A_CONSUMER_GPU = 99 * 1024
MOST_SPILLS = {BFLOAT: 64, HALF: 64, FLOAT: 300}  # in the walk over the halo; too large a step spills thousands
GATE = {
    "attend-512@7-bf16": (attention(512, 7, WINDOW, BFLOAT), 90),
    "attend-128@28-fp32-sm80": (attention(128, 28, WINDOW, FLOAT), 80),
    "attend-tables-256@14-bf16": (attention(256, 14, ZEROS, BFLOAT, "tables"), 90),
    "san-64@56-bf16": (offset_wise(64, 8, 56, WINDOW, BFLOAT), 90),
    "pixel-shift-512@7-fp32-sm80": (pixel_shift_attention(512, 1, 7, FLOAT), 80),
}
REST = {
    **{f"attend-{c}@{s}-bf16": (attention(c, s, WINDOW, BFLOAT), 90) for c, s in RESNET[:3]},
    **{f"attend-{c}@{s}-bf16-sm80": (attention(c, s, WINDOW, BFLOAT), 80) for c, s in RESNET},
    **{f"attend-{c}@{s}-fp16": (attention(c, s, WINDOW, HALF), 90) for c, s in RESNET},
    **{f"attend-{c}@{s}-fp32": (attention(c, s, WINDOW, FLOAT), 90) for c, s in RESNET},
    **{f"attend-{c}@{s}-fp32-sm80": (attention(c, s, WINDOW, FLOAT), 80) for c, s in (RESNET[0], *RESNET[2:])},
    **{f"attend-{c}@{s}-stride2-bf16": (attention(c, s, STRIDED, BFLOAT), 90) for c, s in STRIDED_RESNET},
    **{f"attend-{c}@{s}-stride2-bf16-sm80": (attention(c, s, STRIDED, BFLOAT), 80) for c, s in STRIDED_RESNET},
    **{f"attend-{c}@{s}-stride2-fp32": (attention(c, s, STRIDED, FLOAT), 90) for c, s in STRIDED_RESNET},
    "attend-64@56-zeros-bf16": (attention(64, 56, ZEROS, BFLOAT), 90),
    "attend-64@56-3x3-bf16": (attention(64, 56, Neighborhood.window(3), BFLOAT), 90),
    "attend-80@9-5x5-bf16": (attention(80, 9, Neighborhood.window(5), BFLOAT), 90),
    "attend-tables-512@7-fp32-sm80": (attention(512, 7, ZEROS, FLOAT, "tables"), 80),
    "san-64@56-fp32-sm80": (offset_wise(64, 8, 56, WINDOW, FLOAT), 80),
    "pssa-96@56-bf16": (offset_wise(96, 1, 56, Neighborhood(SCATTERED), BFLOAT), 90),
    **{f"pixel-shift-{c}@{s}-bf16": (pixel_shift_attention(c, 1, s, BFLOAT), 90) for c, s in RESNET},
    **{f"pixel-shift-{c}@{s}-fp32": (pixel_shift_attention(c, 1, s, FLOAT), 90) for c, s in RESNET},
    "pixel-shift-64@56-bf16-sm80": (pixel_shift_attention(64, 1, 56, BFLOAT), 80),
    "pixel-shift-by-channels-64@56-fp16": (pixel_shift_attention(64, 64, 56, HALF, reading="product"), 90),
    "pixel-shift-4-heads-96@28-bf16": (pixel_shift_attention(96, 4, 28, BFLOAT), 90),
    "pixel-shift-reflect-128@56-stride2-bf16": (
        pixel_shift_attention(128, 1, 56, BFLOAT, nbhd=Neighborhood(SCATTERED, (2, 2))),
        90,
    ),
    "one-pixel-bf16": (offset_wise(8, 8, 1, WINDOW, BFLOAT), 90),
}
CASES = [pytest.param(*case, id=name) for name, case in GATE.items()] + [
    pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in REST.items()
]


@pytest.mark.parametrize(("work", "arch"), CASES)
def test_kernels_compile_within_bounds(work, arch):
    found = launches(work)
    assert len(found) == 3
    for launch in found:
        taken = resources(launch, arch)
        print(launch.name, taken)
        assert taken.shared <= SHARED_OF_A_CONSUMER_GPU, launch.name
        assert taken.programs_per_sm >= 2, launch.name
        dtype = next(x.dtype for x in launch.arguments.values() if isinstance(x, torch.Tensor))
        assert taken.spills <= MOST_SPILLS[dtype], launch.name
