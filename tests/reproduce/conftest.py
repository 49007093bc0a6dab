"""The program called as a person calls it."""

import pytest

from reproduce.command import app
from tests.cli.conftest import Command, caller


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call ``python -m reproduce ARGUMENTS``."""
    return caller(app, monkeypatch, capsys)
