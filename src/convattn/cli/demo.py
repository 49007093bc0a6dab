"""``convattn demo``."""

import socket
import time
from typing import Annotated

import typer

from convattn.cli._options import Device, MinScore, RunArgument, Trust
from convattn.cli._training_packages import training_packages
from convattn.errors import UserError

HOST = "127.0.0.1"

Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")]


def demo(
    run: RunArgument,
    port: Port = 7860,
    browser: Browser = True,
    min_score: MinScore = None,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Open a page in the browser that answers on your photographs.

    [bold]Examples[/]

      convattn demo runs/latest

      convattn demo runs/latest --port 8080 --no-browser

    The page shows the answer (of a detector its boxes or masks, of a segmenter its
    classes), Grad-CAM, and what the pixel that you click attends to. It runs on this
    machine alone, until Ctrl-C. It needs gradio: pip install "convattn\\[demo]"
    """
    with training_packages("demo"):
        from convattn.cli._demo_page import make_page, served
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


def _free_port(port: int) -> int:
    """Return a port that can be opened."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be opened: {error.strerror}; give another one with --port") from error
        return int(probe.getsockname()[1])
