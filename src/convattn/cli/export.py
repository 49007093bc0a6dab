"""``convattn export``."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from convattn.cli._precision import Precision
from convattn.cli._tables import make_console
from convattn.errors import UserError

HELP = """Write a trained model as a file for another runtime, run it there and compare.

[bold]Examples[/]

  convattn export                            runs/latest for onnxruntime

  convattn export runs/latest --to openvino

  convattn export runs/latest --int8         8-bit, calibrated on the run's images

  convattn export --to openvino --precision bf16

  convattn export --operators convattn       our CPU kernels inside onnxruntime

  convattn export acmix_resnet50 --size 224 224 --out net.onnx

Then: convattn predict --run runs/latest/model.onnx photo.jpg

The network is folded first, and the operators become standard ones. The file
holds the classes, the size and the mean of the images. It is kept only if its
answers agree with PyTorch's.
"""


class To(str, Enum):
    """The kind of file."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"
    TORCHSCRIPT = "torchscript"
    COREML = "coreml"


class Made(str, Enum):
    """What an ONNX file is made of."""

    STANDARD = "standard"
    CONVATTN = "convattn"


Run = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run folder, weights, or a network's name.")]
ToOption = Annotated[To, typer.Option("--to", help="The runtime.")]
Int8 = Annotated[bool, typer.Option("--int8", help="8-bit weights and maps (onnx).")]
Half = Annotated[bool, typer.Option("--half", help="The same as --precision fp16.")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="fp16: onnx, openvino, coreml; bf16: openvino, beside PyTorch in bf16.")
]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(metavar="H W", help="Of the images; else as the run was trained.", show_default=False),
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Take images of any size, not only of this one.")]
OperatorsOption = Annotated[
    Made, typer.Option("--operators", help="Of an ONNX file; convattn: as fast as a convolution, needs our library.")
]
Opset = Annotated[int, typer.Option(help="Of an ONNX file.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of images to compare on, and to calibrate with; else the run's.", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="File to write; else model.onnx in the run.", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]


def export(
    run: Run = "runs/latest",
    to: ToOption = To.ONNX,
    int8: Int8 = False,
    half: Half = False,
    precision: PrecisionOption = Precision.FLOAT32,
    size: Size = None,
    dynamic: Dynamic = False,
    operators: OperatorsOption = Made.STANDARD,
    opset: Opset = 18,
    data: Data = None,
    out: Out = None,
    trust: Trust = False,
) -> None:
    """Write a trained model as a file for another runtime."""
    half, bfloat16 = half or precision is Precision.FP16, precision is Precision.BF16
    asked = [name for name, wanted in (("int8", int8), ("float16", half), ("bfloat16", bfloat16)) if wanted]
    if len(asked) > 1:
        raise UserError("give one of --int8, --half and --precision")
    if size is not None and min(size) < 1:
        raise UserError(f"--size must be a height and a width of at least 1, got {size[0]} {size[1]}")
    from convattn.export import OnnxOptions, onnxruntime_library
    from convattn.tasks.exporting import ExportOptions, export_run

    options = ExportOptions(
        to=to.value,
        precision=asked[0] if asked else "float32",
        size=size,
        sizes="image" if dynamic else None,
        onnx=OnnxOptions(opset=opset, operators=operators.value),
        out=out,
        data=data,
        trust=trust,
    )
    made = export_run(run, options)
    console = make_console()
    console.print(str(made.report), highlight=False, markup=False, soft_wrap=True)
    if made.report.difference is not None:
        console.print(f"compared on {made.images}", highlight=False, markup=False, soft_wrap=True)
    if made.before is not None and made.after is not None:
        console.print(f"{made.score} {made.before:.2%} before, {made.after:.2%} in int8", highlight=False)
    if operators is Made.CONVATTN:
        console.print(f"the library for onnxruntime: {onnxruntime_library()}", highlight=False, soft_wrap=True)
    console.print(
        f"next  convattn predict --run {made.report.file} IMAGE", highlight=False, markup=False, soft_wrap=True
    )


export.__doc__ = HELP
