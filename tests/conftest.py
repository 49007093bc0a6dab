"""What holds for all tests."""

import os
import signal
import tempfile

import pytest

from tests.quick import LONG

# A shell that starts the tests in the background has SIGINT ignored, and so would all processes that they start:
# tests that send Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asks a hub, nor finds what this machine's cache has; those on the hub say what theirs answers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.path.join(tempfile.gettempdir(), "convattn-tests-have-no-hub")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of :data:`LONG`, before the others are left out."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker("long")


@pytest.fixture
def seeded() -> None:
    """The test draws the same random numbers whichever ran before."""
    import torch

    torch.manual_seed(0)
