"""Networks counted once for all tests of a run."""

from functools import cache

import timm
import torch

import convattn.models  # noqa: F401  registers the networks
from convattn.cost import Convention, Cost, count

# What the definitions in the papers count to: parameters in M, multiply-adds in G by the papers' convention.
COUNTED = {
    "conv_resnet26": (13.697, 2.342),
    "conv_resnet38": (19.627, 3.216),
    "conv_resnet50": (25.557, 4.089),
    "acmix_resnet26": (10.488, 2.268),
    "acmix_resnet38": (14.411, 2.911),
    "acmix_resnet50": (18.334, 3.554),
    "san10": (11.841, 1.791),
    "san15": (16.181, 2.478),
    "san19": (20.518, 3.130),
    "acmix_san10": (11.997, 1.888),
    "acmix_san15": (16.417, 2.630),
    "acmix_san19": (20.833, 3.317),
    "pvt_v1_tiny": (13.229, 1.933),
    "pvt_v1_small": (24.486, 3.816),
    "acmix_pvt_tiny": (13.396, 2.005),
    "acmix_pvt_small": (24.825, 3.950),
    "swin_tiny": (28.288, 4.491),
    "swin_small": (49.606, 8.741),
    "swin_tiny_patch4_window7_224": (28.288, 4.491),
    "swin_small_patch4_window7_224": (49.606, 8.741),
    "acmix_swin_tiny": (28.650, 4.645),
    "acmix_swin_small": (50.345, 8.993),
    "resnet50": (25.557, 4.089),
    "pairwise_san10": (10.532, 2.044),
    "pairwise_san15": (14.065, 2.859),
    "pairwise_san19": (17.596, 3.636),
    "deit_tiny": (5.717, 1.254),
    "deit_small": (22.051, 4.599),
    "deit_base": (86.568, 17.564),
    "acmix_deit_tiny": (5.905, 1.302),
    "acmix_deit_small": (22.426, 4.696),
    "acmix_deit_base": (87.318, 17.759),
    "pvt_v1_medium": (44.208, 6.659),
    "pvt_v1_large": (61.369, 9.814),
    "acmix_pvt_medium": (44.860, 6.865),
    "acmix_pvt_large": (62.297, 10.109),
    "swin_base": (87.768, 15.431),
    "acmix_swin_base": (88.753, 15.767),
    "conv_swin_tiny": (39.035, 6.085),
}


@cache
def counted(name: str, convention: Convention = "published", size: tuple[int, int] = (224, 224)) -> Cost:
    """The cost of a network of timm's registry."""
    assert timm.is_model(name), f"timm has no {name}: convattn.models must import the module that registers it"
    with torch.device("meta"):
        net = timm.create_model(name)
    return count(net, (3, *size), convention=convention)
