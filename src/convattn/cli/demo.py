"""``convattn demo``."""

import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from convattn.cli._training_packages import training_packages
from convattn.errors import UserError

HELP = """Open a page in the browser that answers on your photographs.

[bold]Examples[/]

  convattn demo runs/latest

  convattn demo runs/latest --port 8080 --no-browser

The page shows the answer (of a detector its boxes or masks, of a segmenter its
classes), Grad-CAM, and what the pixel that you click attends to. It runs on this
machine alone, until Ctrl-C. It needs gradio: pip install "convattn\\[demo]"
"""

HOST = "127.0.0.1"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, weights.safetensors or checkpoint.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")]
MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score", "--conf", min=0, max=1, help="Weaker objects are left out (detectors).", show_default=False
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]


def demo(
    run: Run,
    port: Port = 7860,
    browser: Browser = True,
    min_score: MinScore = None,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Open a page in the browser that answers on your photographs."""
    with training_packages("demo"):
        try:
            from convattn.cli._demo_page import make_page, served
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "gradio":
                raise
            raise UserError('demo needs gradio, which is not installed: pip install "convattn[demo]"') from error
        from convattn.tasks.answers import AnswerOptions
        from convattn.tasks.explaining import check_network
        from convattn.tasks.inference import load_model

        port = _free_port(port)
        loaded = load_model(run, device=device, trust=trust)
        check_network(loaded)
        with served(make_page(loaded, AnswerOptions(run, min_score)), host=HOST, port=port, browser=browser):
            print(f"{loaded.name} at http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(1)


demo.__doc__ = HELP


def _free_port(port: int) -> int:
    """Return a port that can be opened."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be opened: {error.strerror}; give another one with --port") from error
        return int(probe.getsockname()[1])
