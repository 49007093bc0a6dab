"""Backbones that carry the operators, in timm's registry.

The plain ResNets are ``conv_resnet26/38/50`` for timm and ``resnet26/38/50`` here: timm's own ``resnet26`` is another
network.

Example:
    >>> import timm, convattn
    >>> timm.create_model("acmix_resnet26", features_only=True, out_indices=(2, 4)).feature_info.channels()
    [512, 2048]
"""

from convattn.models.resnet import (
    ResNet,
    acmix_resnet14,
    acmix_resnet26,
    acmix_resnet38,
    acmix_resnet50,
    conv_resnet14,
    conv_resnet26,
    conv_resnet38,
    conv_resnet50,
    default_cfgs,
    no_weight_decay,
    sasa_resnet14,
    sasa_resnet26,
    sasa_resnet38,
    sasa_resnet50,
)

resnet14, resnet26, resnet38, resnet50 = conv_resnet14, conv_resnet26, conv_resnet38, conv_resnet50

__all__ = [
    "ResNet",
    "acmix_resnet14",
    "acmix_resnet26",
    "acmix_resnet38",
    "acmix_resnet50",
    "conv_resnet14",
    "conv_resnet26",
    "conv_resnet38",
    "conv_resnet50",
    "list_models",
    "no_weight_decay",
    "resnet14",
    "resnet26",
    "resnet38",
    "resnet50",
    "sasa_resnet14",
    "sasa_resnet26",
    "sasa_resnet38",
    "sasa_resnet50",
]


def list_models() -> list[str]:
    """The names under which this library's backbones stand in timm's registry.

    Example:
        >>> [name for name in list_models() if name.startswith("acmix")]
        ['acmix_resnet14', 'acmix_resnet26', 'acmix_resnet38', 'acmix_resnet50']
    """
    return sorted(default_cfgs)
