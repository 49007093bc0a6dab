"""The forms in which COCO writes a mask (polygons, run lengths as numbers or as text), checked and decoded."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convattn.data.names import short
from convattn.errors import needing

LARGEST = 2**63
"""Whole numbers are below this in size: ids and sides go into 64 bits."""

OUTSIDE = 1.0
"""How far, in pixels, a box or polygon may reach beyond its image before it counts as outside."""

Fault = tuple[str, str]
"""What is wrong with a value, and what to do."""


def segmentation_fault(value: Any, height: int, width: int) -> Fault | None:
    """Return what is wrong with an annotation's ``segmentation`` in an image of that size, None where it is right.

    Example:
        >>> segmentation_fault([[0, 0, 4, 0, 4, 4]], 8, 8) is None
        True
        >>> segmentation_fault({"size": [4, 4], "counts": [16]}, 8, 8)[0]
        'the run lengths are of size [4, 4], the image is [8, 8] (height, width)'
    """
    if isinstance(value, list):
        return _polygons_fault(value, height, width)
    if isinstance(value, Mapping):
        return _run_lengths_fault(value, height, width)
    return f"found {short(value)}, expected polygons or run lengths", "write a list of polygons, or remove it"


def decode_mask(value: Any, height: int, width: int) -> np.ndarray:
    """Return the mask of a right ``segmentation``, uint8 [height, width] of 0 and 1.

    Example:
        >>> decode_mask({"size": [2, 2], "counts": [1, 2, 1]}, 2, 2).tolist()
        [[0, 1], [1, 0]]
    """
    return mask_tools().decode(runs_of(value, height, width))


def runs_of(value: Any, height: int, width: int) -> Any:
    """Return a right ``segmentation`` as compressed run lengths."""
    tools = mask_tools()
    if isinstance(value, list):
        return tools.merge(tools.frPyObjects(value, height, width))
    return tools.frPyObjects(value, height, width) if isinstance(value["counts"], list) else value


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask [H, W] as compressed run lengths, ready for JSON.

    Example:
        >>> encode_mask(np.array([[0, 1], [1, 0]]))
        {'size': [2, 2], 'counts': '121'}
    """
    runs = mask_tools().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def mask_tools() -> Any:
    """Return ``pycocotools.mask``; raise a message with the cure where it is not installed."""
    with needing("train", "masks are read with pycocotools"):
        from pycocotools import mask
    return mask


def run_lengths(text: str) -> np.ndarray:
    """Return the numbers behind compressed run lengths, as pycocotools writes them.

    Each number is written in groups of 5 bits, lowest first, bit 6 marking that more follow; from the third on it is
    the difference to the number two places before.

    Example:
        >>> run_lengths("121").tolist()
        [1, 2, 1]
    """
    groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63:
        raise ValueError("a character that run lengths do not have")
    last = (groups & 32) == 0
    if not last[-1]:
        raise ValueError("the text ends inside a number")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(groups.size) - np.repeat(starts, np.diff([*starts, groups.size]))
    if place.max() > 7:
        raise ValueError("a number too large")
    numbers = np.add.reduceat((groups & 31) << (5 * place), starts)
    negative = (groups[last] & 16) != 0
    numbers[negative] -= 1 << (5 * (place[last][negative] + 1))
    # The first number stands for itself, the second and third too: the differences begin with the fourth.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _polygons_fault(polygons: list[Any], height: int, width: int) -> Fault | None:
    mend = "draw the object again, or remove the annotation"
    if not polygons:
        return "the list of polygons is empty", mend
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            return f"a polygon is {short(polygon)}, expected [x1, y1, x2, y2, ...]", mend
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon has {len(polygon)} numbers, expected x and y of three points or more", mend
        if not all(map(math.isfinite, polygon)):
            return "a polygon has a coordinate that is not finite", mend
        xs, ys = polygon[::2], polygon[1::2]
        beyond = max(-min(xs), max(xs) - width, -min(ys), max(ys) - height)
        if beyond > OUTSIDE:
            return f"a polygon reaches {beyond:g} pixels beyond the image of {width}×{height}", mend
    return None


def _run_lengths_fault(value: Mapping[str, Any], height: int, width: int) -> Fault | None:
    mend = "write the mask again at the image's size, or remove the annotation"
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        return f"the run lengths are of size {short(size)}, the image is [{height}, {width}] (height, width)", mend
    if isinstance(counts, str):
        try:
            numbers = run_lengths(counts)
        except (ValueError, UnicodeEncodeError) as error:
            return f"the run lengths cannot be read: {error}", mend
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        numbers = np.array(counts, dtype=object)
    else:
        return f"the run lengths' counts are {short(counts)}, expected a list of whole numbers or a text", mend
    total, wanted = int(numbers.sum()), height * width
    if numbers.size and numbers.min() < 0:
        return "the run lengths hold a negative number", mend
    if total != wanted:
        return f"the run lengths cover {total} pixels, the image has {wanted} ({width}×{height})", mend
    return None


def is_number(value: Any) -> bool:
    """Tell whether a value is a number that computing takes: an integer of JSON may have any size."""
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)
