"""How often something is dropped is a part: every network of ours refuses what is none, which timm would take."""

import math

import pytest
import timm
import torch

import convattn  # noqa: F401  registers the networks
from convattn.segmentation._blocks import classifier


@pytest.mark.parametrize("rate", [5, 1, -0.1, math.nan, math.inf, "0.1"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("acmix_resnet14", "drop_path_rate"),
        ("acmix_resnet14", "drop_block_rate"),
        ("san10", "drop_path_rate"),
        ("pvt_v1_tiny", "drop_path_rate"),
        ("acmix_pvt_tiny", "drop_rate"),
        ("acmix_swin_tiny", "proj_drop_rate"),
    ],
)
def test_a_rate_that_is_no_part_is_refused(name: str, option: str, rate: object) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"{option} must be at least 0 and less than 1, got"),
    ):
        timm.create_model(name, **{option: rate})


def test_the_dropout_of_a_segmenter_is_a_part() -> None:
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1, got 1"):
        classifier(8, 3, 1)
