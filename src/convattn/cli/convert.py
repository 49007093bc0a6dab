"""``convattn convert``."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from convattn.cli._tables import make_console

HELP = """Put operators in place of the convolutions of a trained network and write its weights.

[bold]Examples[/]

  convattn convert resnet50 --to acmix --dry-run       what would be converted

  convattn convert runs/latest --to xvolution          a run's best weights

  convattn convert runs/latest --to acmix --where layer4 num_heads=fit

  convattn convert resnet18 --to xvolution --where 3 --where 4 --out mine.safetensors

A run's weights go into its folder, as weights-xvolution.safetensors; those of a
network by its name, its pretrained ones, into this folder. val, predict and
export take the file with --run, and training starts from it:

  convattn train --data photos/ weights=runs/latest/weights-xvolution.safetensors

A network that is converted to X-volution computes what it did; one converted to
ACmix has to be trained again. KEY=VALUE are options of the operator.
"""


class To(str, Enum):
    """The operator."""

    ACMIX = "acmix"
    XVOLUTION = "xvolution"


Source = Annotated[str, typer.Argument(metavar="RUN|NETWORK", help="Run folder, weights, or a network's name.")]
ToOption = Annotated[To, typer.Option("--to", help="What the convolutions become.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Name or glob in timm's network, or number of a stage; may be given again. Else all convolutions.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing, and fetch nothing.")]
Out = Annotated[Path | None, typer.Option(help="File to write.", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]
Options = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)]


def convert(
    source: Source,
    to: ToOption,
    options: Options = None,
    where: Where = None,
    dry_run: DryRun = False,
    out: Out = None,
    trust: Trust = False,
) -> None:
    """Put operators in place of the convolutions of a trained network."""
    from convattn.tasks.converting import convert_run
    from convattn.tasks.recipes import checked_convert, parse_overrides

    places = [int(place) if place.isdecimal() else place for place in where or []]
    wanted = checked_convert(to.value, places, parse_overrides(options or []))
    made, console = convert_run(source, wanted, dry_run=dry_run, trust=trust), make_console()
    lines = [str(made.report)]
    if not made.has_weights:
        lines.append("the weights are random ones: errors are smaller with trained ones")
    if not dry_run:
        file = out or made.default_file(source)
        made.write(file)
        lines += [
            f"{made.model.name} computes what it did" if made.is_exact else "the operators have to be trained",
            f"weights  {file}",
            f"next     convattn train --data FOLDER weights={file}",
        ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


convert.__doc__ = HELP
