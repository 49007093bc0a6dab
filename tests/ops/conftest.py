"""Guard pages around the tensors that the CPU kernels are told of, under ``CONVATTN_GUARD=1``; ``CONVATTN_RECORD=FILE``
writes down what the kernels are called on."""

import os
import zlib
from pathlib import Path

import pytest
import torch

from tests.ops.guarded import Guard
from tests.ops.recorded import Recorder

GUARD = None
if os.environ.get("CONVATTN_GUARD"):
    GUARD = Guard()
    GUARD.install()
elif os.environ.get("CONVATTN_RECORD"):
    Recorder(Path(os.environ["CONVATTN_RECORD"]).open("wb")).install()  # noqa: SIM115  open while the tests run


@pytest.fixture(autouse=GUARD is not None)
def _guard_pages(request):
    """Behind the tensors in one half of the tests, before them in the other."""
    GUARD.side = ("behind", "before")[zlib.crc32(request.node.nodeid.encode()) % 2]


@pytest.fixture
def set_threads():
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
