"""The small networks of the scenes tables: what their recipes are given for every host and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HOSTS: dict[str, Mapping[str, Any]] = {
    "pvt": {"model_args": {"embed_dims": [48, 96, 144, 192], "num_heads": [1, 2, 3, 4]}},
    "swin": {"model_args": {"embed_dim": 48, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16]}},
    "san": {"model_args": {"widths": [32, 64, 96, 144, 192]}},
}
NETWORKS: dict[str, Mapping[str, Any]] = {
    "retinanet": {
        "network": {
            "head": "retinanet",
            "args": {"min_size": None, "anchor_scale": 2, "channels": 64, "score_threshold": 0.02},
        }
    },
    "cascade_mask_rcnn": {"network.head": "cascade_mask_rcnn"},
    "upernet": {"network": {"head": "upernet", "args": {"channels": 64, "auxiliary_channels": 32}}},
}
"""Heads other than the recipes' own."""


def scene(model: str, head: str = "") -> dict[str, Any]:
    """What a scenes recipe is given for a backbone and a head.

    Example:
        >>> scene("acmix_san10")
        {'model': 'acmix_san10', 'model_args': {'widths': [32, 64, 96, 144, 192]}}
    """
    host = next((options for name, options in HOSTS.items() if name in model), {})
    return {"model": model, **NETWORKS.get(head, {}), **host}
