"""``convattn convert``."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from convattn.cli._options import Trust
from convattn.cli._tables import make_console, say
from convattn.errors import UserError

Source = Annotated[str, typer.Argument(metavar="RUN|NETWORK", help="Run folder, weights, or a network's name.")]
To = Annotated[
    Literal["acmix", "xvolution"],
    typer.Option("--to", help="What the convolutions become; xvolution computes what they did."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Name or glob in timm's network, or number of a stage; may be given again. Else all convolutions.",
        show_default=False,
    ),
]
Share = Annotated[
    str | None, typer.Option("--budget", help="How much longer it may take, such as 10%.", show_default=False)
]
Runtime = Annotated[Literal["pytorch", "onnxruntime"], typer.Option("--runtime", help="Where --budget is measured.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing, and fetch nothing.")]
Out = Annotated[Path | None, typer.Option(help="File to write.", show_default=False)]
Options = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)]


def convert(
    source: Source,
    to: To = "xvolution",
    options: Options = None,
    where: Where = None,
    dry_run: DryRun = False,
    out: Out = None,
    trust: Trust = False,
    budget: Share = None,
    runtime: Runtime = "pytorch",
) -> None:
    """Put operators in place of the convolutions of a trained network and write its weights.

    [bold]Examples[/]

      convattn convert resnet50 --to acmix --dry-run       what would be converted

      convattn convert runs/latest --to xvolution          a run's best weights

      convattn convert runs/latest --to acmix --where layer4 num_heads=fit

      convattn convert resnet18 --to xvolution --where 3 --where 4 --out mine.safetensors

      convattn convert resnet50 --to xvolution --budget 10%      the layers that fit

    A run's weights go into its folder, as weights-xvolution.safetensors; those of a
    network by its name, its pretrained ones, into this folder. val, predict and
    export take the file with --run, and training starts from it:

      convattn train --data photos/ weights=runs/latest/weights-xvolution.safetensors

    A network that is converted to X-volution computes what it did; one converted to
    ACmix has to be trained again. KEY=VALUE are options of the operator.

    With --budget 10% the converted network takes at most 10 % longer than before, on
    one image, both in their inference form; of a detector or segmenter that is its
    backbone. The layers that gain most for each millisecond are converted.
    """
    from convattn.convert import Budget
    from convattn.tasks.converting import convert_run
    from convattn.tasks.recipes import checked_convert, parse_overrides

    places = [int(place) if place.isdecimal() else place for place in where or []]
    wanted = checked_convert(to, places, parse_overrides(options or []))
    limit = None if budget is None else Budget(1 + _share(budget), runtime)
    made = convert_run(source, wanted, dry_run=dry_run, trust=trust, budget=limit)
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
    say(make_console(), *lines)


def _share(text: str) -> float:
    """What ``10%`` means.

    Raises:
        UserError: no such text.

    Example:
        >>> _share("10%"), _share("7.5 %")
        (0.1, 0.075)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if found is None:
        raise UserError(f"--budget takes how much longer the network may take, such as 10%, got {text!r}")
    return float(found[1]) / 100
