"""Guard pages around the tensors that the CPU kernels are told of, under ``CONVATTN_GUARD=1``."""

import os
import zlib

import pytest

from tests.ops.guarded import Guard

GUARD = None
if os.environ.get("CONVATTN_GUARD"):
    GUARD = Guard()
    GUARD.install()


@pytest.fixture(autouse=GUARD is not None)
def _guard_pages(request):
    """Behind the tensors in one half of the tests, before them in the other."""
    GUARD.side = ("behind", "before")[zlib.crc32(request.node.nodeid.encode()) % 2]
