"""``convattn list``."""

import fnmatch
import json
from typing import Annotated

import typer
from rich.table import Table

from convattn.cli._options import AsJson
from convattn.cli._tables import make_console, print_table, say
from convattn.errors import UserError

Pattern = Annotated[str | None, typer.Argument(help="Part of a name, or a pattern with * and ?.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Also the models that come from timm.")]


def list_models(pattern: Pattern = None, everything: All = False, as_json: AsJson = False) -> None:
    """List the models and recipes to train.

    [bold]Examples[/]

      convattn list                              convattn's models, and the recipes

      convattn list acmix                        those with acmix in their name

      convattn list --all 'convnext*'            timm's too: all can be trained
    """
    from convattn.tasks.recipes import recipe_names

    ours = _matching(model_names(), pattern)
    others = _matching(sorted(set(_timm_names()) - set(model_names())), pattern) if everything else []
    recipes = _matching(recipe_names(), pattern)
    if pattern is not None and not (ours or others or recipes):
        where = "" if everything else "; look among timm's models too with --all"
        raise UserError(f"no model or recipe matches {pattern!r}{where}, or leave the pattern out")
    parameters = {name: count_parameters(name) for name in ours}
    if as_json:
        models = [{"name": name, "parameters": parameters.get(name)} for name in [*ours, *others]]
        print(json.dumps({"models": models, "recipes": recipes}, indent=2))
        return
    _print_lists(parameters, others, recipes)


def model_names() -> list[str]:
    """Return the names of convattn's own models."""
    from timm.models import model_entrypoint

    return [name for name in _timm_names() if model_entrypoint(name).__module__.startswith("convattn.")]


def count_parameters(name: str) -> int:
    """Return a model's number of parameters, without the memory or the time to make them."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def _timm_names() -> list[str]:
    import timm

    import convattn.models  # noqa: F401  registers the models

    return timm.list_models()


def _matching(names: list[str], pattern: str | None) -> list[str]:
    if pattern is None:
        return names
    wild = pattern if any(char in pattern for char in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatch.fnmatchcase(name, wild)]


def _print_lists(parameters: dict[str, int], others: list[str], recipes: list[str]) -> None:
    console = make_console()
    if parameters or others:
        table = Table("model", box=None, pad_edge=False, header_style="bold")
        table.add_column("parameters", justify="right")
        for name, value in parameters.items():
            table.add_row(name, f"{value / 1e6:.2f} M")
        for name in others:
            table.add_row(name, "")
        print_table(console, table)
    if recipes:
        console.print("\n[bold]recipe[/]" if parameters or others else "[bold]recipe[/]")
        say(console, *recipes)
