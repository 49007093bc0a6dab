"""Networks counted once for all tests of a run."""

from functools import cache

import timm
import torch

import convattn.models  # noqa: F401  registers the networks
from convattn.cost import Convention, Cost, count


@cache
def counted(name: str, convention: Convention = "published", size: tuple[int, int] = (224, 224)) -> Cost:
    """The cost of a network of timm's registry."""
    assert timm.is_model(name), f"timm has no {name}: convattn.models must import the module that registers it"
    with torch.device("meta"):
        net = timm.create_model(name)
    return count(net, (3, *size), convention=convention)
