"""Whether networks that were converted within a latency budget stay within it: ``python -m benchmarks budget``.

Every network is converted in one process, and measured again in a fresh one, beside the plain network. The budget is
respected where the ratio there is at most 3 % above it. Run it on an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import timm
import torch
import typer
from torch import Tensor, nn

from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from convattn.cli._tables import make_console
from convattn.convert import Budget, ConvertReport, convert
from convattn.convert.latency import Runtime, latency_ratio

TOLERANCE = 0.03
SECONDS = 30.0
"""That a network is measured again, beside the plain one."""


def _yolo() -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    network: nn.Module = DetectionModel("yolo11n.yaml", verbose=False)  # type: ignore[no-untyped-call]
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (lambda: timm.create_model("resnet50"), 224),
    "mobilenetv3_large_100": (lambda: timm.create_model("mobilenetv3_large_100"), 224),
    "yolo11n": (_yolo, 320),
}
"""How each is made, and the side of its image."""


def _made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    return make().eval(), torch.rand(1, 3, side, side)


def choose_layers(
    name: str, to: str, ratio: float, runtime: Runtime, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Convert a network within a budget; what was chosen, and the ratio that was measured then."""
    network, example = _made(name)
    reports: list[ConvertReport] = []
    convert(network, to, example=example, budget=Budget(ratio, runtime), report=reports.append)  # type: ignore[call-overload]
    before, after = reports[0].latency_ms or (1.0, 1.0)
    able = len(reports[0].replaced) + sum(layer.latency_ms is not None for layer in reports[0].skipped)
    return {"layers": [layer.name for layer in reports[0].replaced], "able": able, "ratio": after / before}


def measure_again(name: str, to: str, layers: list[str], runtime: Runtime, on_progress: OnProgress = silent) -> float:
    """The ratio of a network in which these layers are converted to the plain one."""
    network, example = _made(name)
    converted = convert(network, to, where=layers, example=example)  # type: ignore[call-overload]
    return latency_ratio((network, converted), example, runtime, SECONDS)


def budget(
    networks: Annotated[list[str] | None, typer.Argument(help=", ".join(NETWORKS))] = None,
    to: Annotated[str, typer.Option(help="xvolution or acmix.")] = "xvolution",
    ratio: Annotated[float, typer.Option(help="The budget: 1.1 is 10 % longer.")] = 1.1,
    runtime: Annotated[str, typer.Option(help="pytorch or onnxruntime.")] = "pytorch",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Convert networks within a budget and measure them again in a fresh process."""
    console, respected = make_console(), True
    for name in networks or NETWORKS:
        given = {"name": name, "to": to, "runtime": runtime}
        found = call_fresh(choose_layers, {**given, "ratio": ratio}, Process(threads))
        again = call_fresh(measure_again, {**given, "layers": found["layers"]}, Process(threads))
        within = again <= ratio * (1 + TOLERANCE)
        respected &= within
        console.print(
            f"{name} to {to}, {runtime}, budget {ratio:g}: {len(found['layers'])} of {found['able']} layers, "
            f"{found['ratio']:.3f} when chosen, {again:.3f} in a fresh process: {'within' if within else 'OVER'}",
            highlight=False,
        )
    if not respected:
        raise typer.Exit(1)
