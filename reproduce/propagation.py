"""How closely PSSA approximates attention over the whole map: what X-volution's section 3.3 claims, measured.

The attention that is approximated (eq. 2) has learned to remove noise from maps of patches of scikit-learn's two
photos, which it does by a mean over the pixels that look alike. PSSA has that attention's queries, keys and values,
and its coefficients are those of least squares, so the result does not depend on how well a second network trains. In
a stack, the second and the third PSSA have the same queries and keys; their values are the output below, as eq. 7
passes results on. Everything that is compared may add the pixel's own value, and in a stack the output below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.data.scenes import Split, scene_source
from convattn.layers import GlobalAttention2d
from convattn.layers.neighbor_sum import NeighborSum
from convattn.ops import Neighborhood

PATCH, SIDE, CHANNELS = 4, 16, 16
"""Pixels of a patch's side, patches of a map's side, channels."""
IMAGES: Mapping[Split, int] = {"train": 128, "val": 64}
BATCH, STEPS, RATE = 16, 800, 5e-3
"""Of the attention's own training."""
ROUNDS = 3
"""Of least squares for one of eq. 7's two sums after the other."""
HEIGHTS = ("one", "two", "three")
"""Of the stacks."""

Approximation: TypeAlias = Literal["pixel", "static", "stacked", "summed", "unnormalised"]
Maps: TypeAlias = dict[Split, Tensor]


@dataclass(frozen=True)
class Subject:
    """Maps of photos, an attention that was trained on them, and what it makes of them.

    Args:
        attention: one head.
        maps: ``[B, C, H, W]`` of each split, noise among them.
        qkv: the attention's queries, keys and values of these.
        targets: its outputs.
    """

    attention: GlobalAttention2d
    maps: Maps
    qkv: dict[Split, tuple[Tensor, Tensor, Tensor]]
    targets: Maps


def photo_patches(split: Split, seed: int) -> Tensor:
    """Random crops of a split's part of the photos as maps of patches, ``[B, 3 * 4 * 4, 16, 16]``."""
    random, areas = np.random.default_rng([seed, int(split == "val")]), scene_source(split).areas
    size, crops = PATCH * SIDE, []
    for _ in range(IMAGES[split]):
        _, photo, (left, top, right, bottom) = areas[random.integers(len(areas))]
        x, y = int(random.integers(left, right - size + 1)), int(random.integers(top, bottom - size + 1))
        crops.append(np.asarray(photo.crop((x, y, x + size, y + size)), np.float32) / 255)
    return F.pixel_unshuffle(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), PATCH)


def whitened(seed: int) -> Maps:
    """The patches' first principal components over the training maps, each of variance 1."""
    found: Maps = {split: photo_patches(split, seed) for split in IMAGES}
    pixels = found["train"].transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(pixels.double()))
    matrix = (vectors[:, -CHANNELS:] / values[-CHANNELS:].sqrt()).t().float()
    centred = {split: x - pixels.mean(1)[:, None, None] for split, x in found.items()}
    return {split: torch.einsum("oc,bchw->bohw", matrix, x) for split, x in centred.items()}


@cache
def subject(seed: int) -> Subject:
    """What is approximated under a seed: other crops, other noise, another training."""
    torch.manual_seed(seed)
    clean = whitened(seed)
    maps: Maps = {split: (x + torch.randn_like(x)) / 2**0.5 for split, x in clean.items()}
    attention = GlobalAttention2d(CHANNELS, CHANNELS, num_heads=1)
    optimizer = torch.optim.Adam(attention.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(clean["train"]), (BATCH,))
        optimizer.zero_grad()
        F.mse_loss(attention(maps["train"][chosen]), clean["train"][chosen]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        qkv = {split: attention.projection(x).chunk(3, 1) for split, x in maps.items()}
        return Subject(attention, maps, qkv, {split: attention(x) for split, x in maps.items()})


def explained(approximation: Approximation, seed: int) -> dict[str, float]:
    """How many percent of the attention's variance on the held-out maps are explained, by height of the stack.

    That is 100 R²: 0 of a constant for every channel, 100 of the attention itself.
    """
    of = subject(seed)
    wanted = of.targets["val"]
    spread = (wanted - of.targets["train"].mean((0, 2, 3), keepdim=True)).square().sum()
    return {
        height: 100 * float(1 - (made["val"] - wanted).square().sum() / spread)
        for height, made in zip(HEIGHTS, approximated(approximation, of), strict=False)
    }


@torch.no_grad()
def approximated(approximation: Approximation, of: Subject) -> Iterator[Maps]:
    """The best approximations of an attention's outputs, one for each height of the stack."""
    values: Maps = {split: v for split, (_, _, v) in of.qkv.items()}
    own = {split: torch.stack([torch.ones_like(v), v], 2) for split, v in values.items()}
    if approximation == "pixel":
        yield least_squares(own, of)[0]
        return
    if approximation == "unnormalised":
        sums = {split: _sums_over_the_map(*qkv) for split, qkv in of.qkv.items()}
        yield least_squares({split: torch.cat([own[split], sums[split]], 2) for split in own}, of)[0]
        return
    for height in range(len(HEIGHTS)):
        alone = own if not height else {split: torch.cat([own[split], values[split][:, :, None]], 2) for split in own}
        values = _operator(approximation, of, values, alone)[0]
        yield values


def _operator(
    approximation: Approximation, of: Subject, values: Maps, alone: Maps
) -> tuple[Maps, Tensor, NeighborSum | None]:
    """One operator beside what a pixel has alone: its output, its coefficients ``[C, D]`` and its outer sum."""
    lengths = (0, 1, 3, 5) if approximation == "summed" else (1, 3, 5)
    nbhd = Neighborhood.directions(lengths)
    terms = {split: seen(values[split], nbhd) for split in values}
    if approximation != "static":
        terms = {split: similarities(*of.qkv[split][:2], nbhd)[:, None] * x for split, x in terms.items()}
    given = alone["train"].shape[2]
    out, found = least_squares({split: torch.cat([alone[split], terms[split]], 2) for split in terms}, of)
    inner = found[:, given:]
    if approximation != "summed":
        return out, inner, None
    outer = NeighborSum(CHANNELS, nbhd)
    for _ in range(ROUNDS):
        sums = {split: torch.einsum("cd,bcdhw->bchw", inner, x) for split, x in terms.items()}
        both = {split: torch.cat([alone[split], seen(sums[split], nbhd)], 2) for split in sums}
        outer.weight.copy_(least_squares(both, of)[1][:, given:].t())
        summed = {split: _over_each(outer, x) for split, x in terms.items()}
        out, found = least_squares({split: torch.cat([alone[split], summed[split]], 2) for split in summed}, of)
        inner = found[:, given:]
    return out, inner, outer


def least_squares(terms: Maps, of: Subject) -> tuple[Maps, Tensor]:
    """The sums of terms ``[B, C, T, H, W]`` nearest to the attention on the training maps; their coefficients."""
    given, wanted = (x["train"].double() for x in (terms, of.targets))
    moments = torch.einsum("bcshw,bcthw->cst", given, given)
    size = moments.diagonal(dim1=1, dim2=2).sqrt().clamp(min=1e-30)  # each term of length 1: their sizes differ much
    scaled = moments / size[:, :, None] / size[:, None] + 1e-9 * torch.eye(size.shape[1], dtype=torch.float64)
    right = torch.einsum("bcthw,bchw->ct", given, wanted) / size
    found = (torch.linalg.solve(scaled, right[..., None])[..., 0] / size).float()
    return {split: torch.einsum("ct,bcthw->bchw", found, x) for split, x in terms.items()}, found


def seen(x: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, D, H, W]``, what every pixel reads."""
    return torch.stack([*nbhd.views(nbhd.pad(x), x.shape[2], x.shape[3])], 2)


def similarities(q: Tensor, k: Tensor, nbhd: Neighborhood) -> Tensor:
    """PSSA's ``[B, D, H, W]`` of one head."""
    return (q[:, :, None] * seen(k, nbhd)).sum(1) * q.shape[1] ** -0.5


def _over_each(outer: NeighborSum, terms: Tensor) -> Tensor:
    """The sum over the neighbours of each term, ``[B, C, D, H, W]``."""
    return outer(terms.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(terms), -1)).transpose(1, 2)


def _sums_over_the_map(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 3's sum over the whole map, without a softmax, and the sum of the values: ``[B, C, 2, H, W]``."""
    weights = q.flatten(2).transpose(1, 2) @ k.flatten(2) * q.shape[1] ** -0.5
    weighted = (v.flatten(2) @ weights.transpose(1, 2)).view_as(v) / k[0, 0].numel()
    return torch.stack([weighted, v.mean((2, 3), keepdim=True).expand_as(v)], 2)
