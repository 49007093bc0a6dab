"""The ``convattn`` command: one file per verb."""

import errno
import io
import sys
import warnings
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from convattn import __version__
from convattn.cli._faults import give_up_stdout, message_of
from convattn.cli.bench import bench
from convattn.cli.check_data import check_data
from convattn.cli.convert import convert
from convattn.cli.cost import cost
from convattn.cli.demo import demo
from convattn.cli.explain import explain
from convattn.cli.export import export
from convattn.cli.info import info
from convattn.cli.list import list_models
from convattn.cli.predict import predict
from convattn.cli.train import train
from convattn.cli.val import val
from convattn.data.names import ESCAPED
from convattn.errors import naming_file
from convattn.tasks.interrupt import STOPPED, Stopped, stoppable


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"convattn {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
]

app = typer.Typer(
    name="convattn",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def options(version: Version = False) -> None:
    """Operators that are convolution and self-attention at once: train, validate, predict, export."""


app.command()(train)
app.command()(val)
app.command()(predict)
app.command()(explain)
app.command()(demo)
app.command()(export)
app.command()(convert)
app.command()(info)
app.command(name="list")(list_models)
app.command()(cost)
app.command()(bench)
app.command(name="check-data")(check_data)


def main(command: typer.Typer = app) -> None:
    """Run the command; what a person can mend becomes one message and exit code 2, never a traceback.

    Ctrl-C and SIGTERM end it with exit code 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)
    if not sys.warnoptions:  # what libraries warn of is no message to a person; python -W shows it
        warnings.filterwarnings("ignore", module=r"(?!convattn\b)")
    try:
        with stoppable():
            _run_and_flush(command)
    except Stopped:
        with suppress(OSError):
            print("Stopped.", file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        Console(stderr=True).print(f"[bold red]convattn:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _run_and_flush(command: typer.Typer) -> None:
    """Run the command and print all of it: a full disk behind ``>`` shows here, not when the interpreter ends."""
    try:
        command()
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            give_up_stdout()
            if error.errno == errno.EPIPE:  # whoever read has seen enough
                sys.exit(1)
            with naming_file("what is printed"):
                raise
