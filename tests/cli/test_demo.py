"""``convattn demo``: the page in a browser, and what is refused before it opens."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.browser import browser
from tests.cli.conftest import Command

WAIT = 120_000
"""Milliseconds."""


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of the page of a run, by the name of its fixture and its task."""
    pytest.importorskip("gradio")
    name, task = request.param
    found = request.getfixturevalue(name)
    run = found[task] if task else found
    words = ["-c", "from convattn_command import main; main()", "demo", str(run), "--port", "0", "--no-browser"]
    words += ["--device", "cpu", *(["--min-score", "0"] if task == "instances" else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http://127.0.0.1:" in line
        yield line.split(" at ")[1].split()[0]
        process.terminate()
        process.wait(30)
        assert process.returncode == 130


def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 90, (60, 80, 3), dtype=np.uint8)
    pixels[..., 0] += 150
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@contextmanager
def uploaded(address: str, folder: Path) -> Iterator[Any]:
    """Open the page, and give it a picture."""
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(address, wait_until="domcontentloaded")
        page.locator("input[type=file]").first.set_input_files(str(picture(folder)), timeout=WAIT)
        yield page


@pytest.mark.slow
class TestPage:
    @pytest.mark.parametrize("address", [("trained", "")], indirect=True)
    def test_a_classifier_answers_and_shows_what_it_looked_at(self, address: str, tmp_path: Path) -> None:
        with uploaded(address, tmp_path) as page:
            words = page.get_by_label("The answer in words")
            page.wait_for_function("box => box.value.includes('%')", arg=words.element_handle(), timeout=WAIT)
            assert words.input_value().startswith("red, ")
            assert "Grad-CAM alone" in words.input_value()  # its network has no attention
            assert page.locator("img").count() >= 3

    @pytest.mark.parametrize("address", [("runs", "instances")], indirect=True)
    def test_a_detector_draws_and_a_click_shows_another_pixel(self, address: str, tmp_path: Path) -> None:
        with uploaded(address, tmp_path) as page:
            layer = page.get_by_text("layer4.1.conv2.attention").first
            layer.wait_for(timeout=WAIT)
            before = page.locator("#attention img").first.get_attribute("src")
            page.locator("#photo img").first.click()  # its middle
            changed = "old => document.querySelector('#attention img')?.getAttribute('src') !== old"
            page.wait_for_function(changed, arg=before, timeout=WAIT)


def test_a_port_that_is_taken(command: Command, trained: Path) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = command("demo", trained, "--port", port, "--no-browser")
    assert found.code == 2
    assert f"port {port} cannot be opened: Address already in use; give another one with --port" in found.err


def test_without_gradio(command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "convattn.cli._demo_page", raising=False)
    found = command("demo", trained)
    assert found.code == 2
    assert found.err.strip() == 'convattn: demo needs gradio, which is not installed: pip install "convattn[demo]"'


def test_a_run_that_is_not_there(command: Command, here: Path) -> None:
    pytest.importorskip("gradio")
    found = command("demo", here / "nowhere", "--port", 0, "--no-browser")
    assert (found.code, found.out) == (2, "")
    assert "no such run or weights; train a model first" in found.err
