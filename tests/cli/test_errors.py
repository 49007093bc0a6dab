"""What the command does with an error that a person can mend."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("path", ["[/red]x", "[red]nowhere"])
def test_a_path_that_looks_like_markup_is_shown_as_it_is(path):
    run = [sys.executable, "-c", "from convattn.cli import main; main()", "predict", "x.jpg", "--run", path]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2
    assert path in done.stderr
    assert "Traceback" not in done.stderr
