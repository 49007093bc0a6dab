"""The options that several commands have."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convattn.errors import UserError

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, weights.safetensors or checkpoint.")]
Run = Annotated[Path, typer.Option(help="Run folder, weights.safetensors, checkpoint or exported file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]
Precision = Annotated[Literal["float32", "bf16", "fp16"], typer.Option(help="What the network computes in.")]
Tta = Annotated[bool, typer.Option("--tta", help="Answer with the mirror image too: better, in twice the time.")]
MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score",
        "--conf",
        min=0,
        max=1,
        help="Weaker objects are left out (detectors); else the weights' own.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]


def choice(option: str, help: str, *known: str) -> Any:
    """Return an option that takes one of some words."""
    told = f"one of {', '.join(known)}" if len(known) > 2 else " or ".join(known)

    def check(value: str) -> str:
        if value not in known:
            raise UserError(f"{option} must be {told}, got {value!r}")
        return value

    return typer.Option(option, help=help, callback=check)
