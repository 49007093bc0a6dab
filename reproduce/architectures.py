"""Architectures by stage: the supplement's tables 2 to 5 beside the networks, plain and with ACmix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import timm
import torch
from torch import nn

import convattn.models  # noqa: F401  registers the networks
from reproduce.entries import Part, Quantity, Row

SECONDS = "seconds"
SHAPE = tuple(Quantity(name, unit, name, 0) for name, unit in (("blocks", ""), ("channels", ""), ("side", "px")))


@dataclass(frozen=True)
class Family:
    """Networks whose stages are described by the same numbers.

    Args:
        place: of a stage's blocks, with its number.
        first: the number of the first stage.
        channels: of each stage's output.
        sides: of each stage's output.
        details: what else is printed of a stage, each with a number for all stages.
    """

    place: str
    first: int
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    details: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The columns of a table."""
        return (*SHAPE, *(Quantity(name, "", name, 0) for name in self.details))


RESNET = Family("layer{}", 1, (256, 512, 1024, 2048), (56, 28, 14, 7))
# The supplement gives the heads and the window of ResNet-ACmix in its section C, all else in the tables.
_OF_RESNET = {"width of the 3×3": (64, 128, 256, 512), "heads N": (4,) * 4, "window": (7,) * 4}
# title | plain network | with ACmix | blocks by stage
_TABLES: dict[str, tuple[Family, str]] = {
    "supplement, table 2": (
        Family(RESNET.place, 1, RESNET.channels, RESNET.sides, _OF_RESNET),
        """
        ResNet-26 | conv_resnet26 | acmix_resnet26 | 1 2 4 1
        ResNet-38 | conv_resnet38 | acmix_resnet38 | 2 3 5 2
        ResNet-50 | conv_resnet50 | acmix_resnet50 | 3 4 6 3
        """,
    ),
    "supplement, table 3": (
        Family(
            "stages.{}.blocks",
            0,
            (64, 256, 512, 1024, 2048),
            (112, 56, 28, 14, 7),
            {"window": (3, 7, 7, 7, 7), "width of the attention": (16, 64, 128, 256, 512)},
        ),
        """
        SAN-10 | san10 | acmix_san10 | 2 1 2 4 1
        SAN-15 | san15 | acmix_san15 | 3 2 3 5 2
        SAN-19 | san19 | acmix_san19 | 3 3 4 6 3
        """,
    ),
    "supplement, table 4": (
        Family(
            "stages.{}.blocks",
            0,
            (64, 128, 320, 512),
            (56, 28, 14, 7),
            {
                "patch P": (4, 2, 2, 2),
                "reduction R": (8, 4, 2, 1),
                "heads N": (1, 2, 5, 8),
                "expansion E": (8, 8, 4, 4),
            },
        ),
        """
        PVT-T | pvt_v1_tiny  | acmix_pvt_tiny  | 2 2 2 2
        PVT-S | pvt_v1_small | acmix_pvt_small | 3 4 6 3
        """,
    ),
    "supplement, table 5": (
        Family(
            "layers.{}.blocks",
            0,
            (96, 192, 384, 768),
            (56, 28, 14, 7),
            {"window": (7,) * 4, "heads N": (3, 6, 12, 24)},
        ),
        """
        Swin-T | swin_tiny  | acmix_swin_tiny  | 2 2 6 2
        Swin-S | swin_small | acmix_swin_small | 2 2 18 2
        """,
    ),
}


def architecture(source: str) -> Part:
    """Every stage of a table's networks, plain and with ACmix, which the supplement has in one column."""
    family, networks = _TABLES[source]
    rows = []
    for line in networks.strip().splitlines():
        title, plain, acmix, blocks = (cell.strip() for cell in line.split("|"))
        for named, model in ((title, plain), (f"{title} (ACmix)", acmix)):
            rows += architecture_rows(f"{named}|{model}", family, tuple(map(int, blocks.split())))
    return Part("count", family.quantities, tuple(rows), SECONDS)


def architecture_rows(named: str, family: Family, blocks: tuple[int, ...]) -> list[Row]:
    """A row for every stage of a network, ``"title|model"``."""
    title, _, model = named.partition("|")
    places = tuple(family.place.format(family.first + number) for number in range(len(blocks)))
    rows = []
    for number, place in enumerate(places):
        published = {"blocks": blocks[number], "channels": family.channels[number], "side": family.sides[number]}
        published |= {
            name: values[number] for name, values in family.details.items() if detail(model, place, name) is not None
        }
        made = partial(_stage, model, places, number, tuple(family.details))
        rows.append(
            Row(f"{title}, stage {number + 1}", {name: str(value) for name, value in published.items()}, count=made)
        )
    return rows


def _stage(model: str, places: tuple[str, ...], number: int, details: Sequence[str]) -> dict[str, float]:
    found = dict(zip(("blocks", "channels", "side"), shape_of(model, places)[number], strict=True))
    read = {name: detail(model, places[number], name) for name in details}
    return found | {name: value for name, value in read.items() if value is not None}


@cache
def _network(model: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(model).eval()


def detail(model: str, place: str, name: str) -> float | None:
    """What a stage has of something, the same in all of its blocks; None where the network has nothing of the kind.

    Raises:
        ValueError: the blocks of a stage differ.

    Example:
        >>> detail("acmix_pvt_tiny", "stages.1.blocks", "reduction R"), detail("conv_resnet26", "layer1", "heads N")
        (4, None)
    """
    network: Any = _network(model)
    blocks: Any = network.get_submodule(place)
    stage = network.get_submodule(place.rpartition(".")[0]) if "." in place else blocks
    values = {READERS[name](stage, block) for block in blocks}
    if len(values) != 1:
        raise ValueError(f"{model}: the blocks of {place} have different {name}: {values}")
    return values.pop()


def _of_attention(attribute: str, block: Any) -> Any:
    """An attribute of the block's attention, or of its operator."""
    operator = getattr(block, "attn", None) or block.conv2
    attention = getattr(operator, "attention", operator)
    return getattr(attention, attribute, getattr(operator, attribute, None))


def _window(stage: Any, block: Any) -> float | None:
    window = _of_attention("window_size", block)
    if window is not None:
        return int(window[0])
    neighborhood = _of_attention("neighborhood", block)
    return None if neighborhood is None else round(len(neighborhood) ** 0.5)


READERS: dict[str, Callable[[Any, Any], float | None]] = {
    "width of the 3×3": lambda stage, block: block.conv3.in_channels,
    "width of the attention": lambda stage, block: block.conv.in_channels,
    "heads N": lambda stage, block: _of_attention("num_heads", block),
    "window": _window,
    "patch P": lambda stage, block: stage.patch_embed.proj.kernel_size[0],
    "reduction R": lambda stage, block: block.attn.projection.sr_ratio,
    "expansion E": lambda stage, block: block.mlp.fc1.out_features / block.mlp.fc1.in_features,
}
"""How each detail is read from a network."""


@cache
def shape_of(model: str, stages: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """Of every stage of a network: blocks, channels and the side of its output for an image of 224x224.

    Args:
        model: of timm's registry.
        stages: where its stages' blocks are.

    Example:
        >>> shape_of("conv_resnet26", ("layer1", "layer4"))
        ((1, 256, 56), (1, 2048, 7))
    """
    network = _network(model)
    with torch.device("meta"):
        found: dict[str, tuple[int, int]] = {}
        blocks: dict[str, int] = {}
        for name in stages:
            stage: Any = network.get_submodule(name)
            blocks[name] = len(stage)
            stage[-1].register_forward_hook(_noting(found, name))
        with torch.no_grad():
            network(torch.empty(1, 3, 224, 224))
    return tuple((blocks[name], *found[name]) for name in stages)


def _noting(found: dict[str, tuple[int, int]], name: str) -> Any:
    def note(module: Any, inputs: Any, output: Any) -> None:
        found[name] = _channels_and_side(output[0] if isinstance(output, Sequence) else output)

    return note


def _channels_and_side(output: torch.Tensor) -> tuple[int, int]:
    """Of ``[B, C, H, W]``, ``[B, H, W, C]`` or ``[B, HW, C]``, a class token left out."""
    shape = tuple(output.shape)
    if len(shape) == 3:
        return shape[2], int(shape[1] ** 0.5)
    return (shape[3], shape[1]) if shape[1] == shape[2] != shape[3] else (shape[1], shape[2])
