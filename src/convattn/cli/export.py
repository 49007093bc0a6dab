"""``convattn export``."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convattn.cli._options import Trust
from convattn.cli._tables import make_console, say
from convattn.errors import UserError

Run = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run folder, weights, or a network's name.")]
To = Annotated[
    Literal["onnx", "openvino", "torch-export", "torchscript", "coreml"], typer.Option("--to", help="The runtime.")
]
Int8 = Annotated[bool, typer.Option("--int8", help="8-bit weights and maps (onnx).")]
Half = Annotated[bool, typer.Option("--half", help="The same as --precision fp16.")]
Precision = Annotated[
    Literal["float32", "bf16", "fp16"],
    typer.Option(help="fp16: onnx, openvino, coreml; bf16: openvino, beside PyTorch in bf16."),
]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(metavar="H W", help="Of the images; else as the run was trained.", show_default=False),
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Take images of any size, not only of this one.")]
Operators = Annotated[
    Literal["standard", "convattn"],
    typer.Option("--operators", help="onnx, openvino; convattn: as fast as a convolution, needs our library."),
]
Opset = Annotated[int, typer.Option(help="Of an ONNX file.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of images to compare on, and to calibrate with; else the run's.", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="File to write; else model.onnx in the run.", show_default=False)]


def export(
    run: Run = "runs/latest",
    to: To = "onnx",
    int8: Int8 = False,
    half: Half = False,
    precision: Precision = "float32",
    size: Size = None,
    dynamic: Dynamic = False,
    operators: Operators = "standard",
    opset: Opset = 18,
    data: Data = None,
    out: Out = None,
    trust: Trust = False,
) -> None:
    """Write a trained model as a file for another runtime, run it there and compare.

    [bold]Examples[/]

      convattn export                            runs/latest for onnxruntime

      convattn export runs/latest --to openvino

      convattn export runs/latest --int8         8-bit, calibrated on the run's images

      convattn export --to openvino --precision bf16

      convattn export --operators convattn       our CPU kernels inside onnxruntime, or --to openvino

      convattn export acmix_resnet50 --size 224 224 --out net.onnx

    Then: convattn predict --run runs/latest/model.onnx photo.jpg

    The network is folded first, and the operators become standard ones. The file
    holds the classes, the size and the mean of the images. It is kept only if its
    answers agree with PyTorch's.
    """
    wanted = {"int8": int8, "float16": half or precision == "fp16", "bfloat16": precision == "bf16"}
    asked: list[Any] = [name for name, is_wanted in wanted.items() if is_wanted]
    if len(asked) > 1:
        raise UserError("give one of --int8, --half and --precision")
    if size is not None and min(size) < 1:
        raise UserError(f"--size must be a height and a width of at least 1, got {size[0]} {size[1]}")
    from convattn.export import OnnxOptions
    from convattn.export.kernels import runtimes_library
    from convattn.tasks.exporting import ExportOptions, export_run

    options = ExportOptions(
        to=to,
        precision=asked[0] if asked else "float32",
        size=size,
        sizes="image" if dynamic else None,
        onnx=OnnxOptions(opset=opset, operators=operators),
        out=out,
        data=data,
        trust=trust,
    )
    made = export_run(run, options)
    lines = [str(made.report)]
    if made.report.difference is not None:
        lines.append(f"compared on {made.images}")
    if made.before is not None and made.after is not None:
        lines.append(f"{made.score} {made.before:.2%} before, {made.after:.2%} in int8")
    if operators == "convattn":
        needs = "convattn.export.openvino_operators()" if to == "openvino" else str(runtimes_library())
        lines.append(f"other programs open it with {needs}")
    say(make_console(), *lines, f"next  convattn predict --run {made.report.file} IMAGE")
