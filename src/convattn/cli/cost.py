"""``convattn cost``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from convattn.cli._tables import make_console, print_table, say
from convattn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from convattn.cost.table import Row

CONVENTIONS = ("published", "counted")

Models = Annotated[list[str] | None, typer.Argument(help="Names, timm's too; 'convattn list' has them.")]
Size = Annotated[tuple[int, int], typer.Option(help="Height and width of the image.", metavar="H W")]
ConventionName = Annotated[
    str,
    typer.Option(
        help="published: as the papers count, local attention at the size of its input even where it strides, "
        "position terms left out. counted: every product at the size of its output."
    ),
]
Flops = Annotated[bool, typer.Option("--flops", help="Print FLOPs, two a multiply-add, published figures too.")]
Operators = Annotated[bool, typer.Option("--operators", help="Also every operator of every network.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Write CSV: a line a network.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON: operators too.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Write Markdown tables.")]
Out = Annotated[Path | None, typer.Option(help="Write there, not to the terminal.", show_default=False)]
Plot = Annotated[Path | None, typer.Option(help="Also draw counted and published: an .svg file.", show_default=False)]


def cost(
    models: Models = None,
    size: Size = (224, 224),
    convention: ConventionName = "published",
    flops: Flops = False,
    operators: Operators = False,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Parameters and multiply-adds of networks, whole and by stage and path, beside what the papers publish.

    [bold]Examples[/]

      convattn cost acmix_resnet50 conv_resnet50

      convattn cost                              every network of ACmix's figure 4

      convattn cost acmix_resnet50 --convention counted --operators

      convattn cost acmix_swin_tiny convnext_tiny --size 800 1333

      convattn cost --csv --out costs.csv        also --json, --markdown

      convattn cost --plot costs.svg
    """
    from convattn.cost.table import to_csv, to_json, to_markdown

    forms = {"--csv": (as_csv, to_csv), "--json": (as_json, to_json), "--markdown": (as_markdown, to_markdown)}
    chosen = [option for option, (is_chosen, _) in forms.items() if is_chosen]
    if len(chosen) > 1:
        raise UserError(f"give one of {', '.join(forms)}, got {' and '.join(chosen)}")
    if out is not None and not chosen:
        raise UserError("--out needs a form to write: --csv, --json or --markdown")
    if convention not in CONVENTIONS:
        raise UserError(f"--convention must be {' or '.join(CONVENTIONS)}, got {convention!r}")
    if min(size) < 1:
        raise UserError(f"--size must be a height and a width of at least 1, got {size[0]} {size[1]}")
    if plot is not None and plot.suffix != ".svg":
        raise UserError(f"--plot writes an .svg file, got {str(plot)!r}")
    rows = count_all(models or _of_figure_4(), size, convention)
    console = make_console()
    if chosen:
        text = forms[chosen[0]][1](rows)
        if out is None:
            print(text, end="" if text.endswith("\n") else "\n")
        else:
            _write(out, text)
            say(console, str(out))
    else:
        _show(rows, 2 if flops else 1, operators)
    if plot is not None:
        from convattn.cost.figure import draw

        _write(plot, draw(rows))
        if not chosen or out is not None:
            say(console, f"figure: {plot}")
    if not chosen:
        next_step = (
            "convattn cost --plot costs.svg   (a figure of all of them)" if plot is None else "--json for programs"
        )
        console.print(f"next: {next_step}", highlight=False)


def count_all(models: Sequence[str], size: tuple[int, int], convention: str) -> "list[Row]":
    """Count every network, one after the other.

    Raises:
        UserError: a name that timm does not know, or a network that does not take images of that size.
    """
    from convattn.cost import count
    from convattn.cost.table import Row

    _check_names(models)
    rows = []
    for name in dict.fromkeys(models):
        try:
            found = count(_create(name, size), (3, *size), convention=convention)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"{name} at {size[0]}x{size[1]}: {error}; give a size that it takes with --size") from error
        rows.append(Row.of(name, size, convention, found))
    return rows


def _of_figure_4() -> list[str]:
    from convattn.cost.published import FIGURE_4

    return [row.models[0] for row in FIGURE_4]


def _check_names(models: Sequence[str]) -> None:
    import timm

    import convattn.models  # noqa: F401  registers the models

    for name in models:
        if not timm.is_model(name):
            hint = did_you_mean(name, timm.list_models(), most=3)
            raise UserError(f"no model {name!r}: {hint}'convattn list --all' names them all")


def _create(name: str, size: tuple[int, int]) -> "nn.Module":
    """The network without memory for its weights; made for that size where it is made for one."""
    import timm
    import torch

    defaults = timm.get_pretrained_cfg(name)
    fixed = defaults is not None and defaults.fixed_input_size and tuple(defaults.input_size[1:]) != size
    options: dict[str, Any] = {"img_size": size} if fixed else {}
    try:
        with torch.device("meta"):
            return timm.create_model(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{name} cannot be made for images of {size[0]}x{size[1]}: {error}") from error
    except (RuntimeError, NotImplementedError):  # its constructor computes with values
        return timm.create_model(name, **options)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


def _show(rows: "list[Row]", factor: int, operators: bool) -> None:
    from convattn.cost.table import STAGE_HEADINGS, TOTAL_HEADINGS, stage_cells, total_cells

    console, unit = make_console(), "GMACs" if factor == 1 else "GFLOPs"
    height, width = rows[0].size
    headings = [unit if heading == "GMACs" else heading for heading in TOTAL_HEADINGS]
    lines = [total_cells(row, factor) for row in rows]
    _print_table(console, f"{height}x{width}, convention {rows[0].convention}", headings, lines)
    staged = [stage_cells(row, factor) for row in rows if row.cost.operators]
    if staged:
        _print_table(console, f"stages and paths of the operators, {unit}", STAGE_HEADINGS, staged)
    if operators:
        for row in rows:
            _show_operators(console, row, factor)


def _print_table(console: Console, title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table whose first column is a name; columns without a cell are left out."""
    kept = [place for place in range(len(headings)) if any(line[place] for line in lines)]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place in kept:
        table.add_column(headings[place], justify="right" if place else "left", no_wrap=not place)
    for line in lines:
        table.add_row(*(line[place] for place in kept))
    print_table(console, table)
    console.print()


def _show_operators(console: Console, row: "Row", factor: int) -> None:
    from convattn.cost.operators import PATHS
    from convattn.cost.table import giga

    lines = [
        (
            operator.name or "(the network)",
            operator.kind,
            "x".join(map(str, operator.input_shape)),
            f"{sum(operator.parameters.values()) / 1e6:.3f}",
            *(giga(operator.macs[path] * factor) for path in PATHS),
        )
        for operator in row.cost.operators
    ]
    headings = ("operator", "class", "input", "params, M", "I", "attention", "fc", "group conv")
    _print_table(console, row.model, headings, lines)
