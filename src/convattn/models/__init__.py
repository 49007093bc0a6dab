"""Backbones that carry the operators, in timm's registry.

The plain ResNets are ``conv_resnet26/38/50`` for timm and ``resnet26/38/50`` here: timm's own ``resnet26`` is another
network.

Example:
    >>> import timm, convattn
    >>> timm.create_model("acmix_resnet26", features_only=True, out_indices=(2, 4)).feature_info.channels()
    [512, 2048]
"""

from convattn.models import pvt, resnet, san, swin
from convattn.models.pvt import (
    PVT,
    acmix_pvt_small,
    acmix_pvt_tiny,
    pvt_v1_large,
    pvt_v1_medium,
    pvt_v1_small,
    pvt_v1_tiny,
)
from convattn.models.resnet import (
    ResNet,
    aa_resnet14,
    aa_resnet26,
    aa_resnet38,
    aa_resnet50,
    acmix_resnet14,
    acmix_resnet26,
    acmix_resnet38,
    acmix_resnet50,
    bot_resnet14,
    bot_resnet26,
    bot_resnet38,
    bot_resnet50,
    conv_resnet14,
    conv_resnet18,
    conv_resnet26,
    conv_resnet34,
    conv_resnet38,
    conv_resnet50,
    halo_resnet14,
    halo_resnet26,
    halo_resnet38,
    halo_resnet50,
    involution_resnet14,
    involution_resnet26,
    involution_resnet38,
    involution_resnet50,
    lambda_resnet14,
    lambda_resnet26,
    lambda_resnet38,
    lambda_resnet50,
    lr_resnet14,
    lr_resnet26,
    lr_resnet38,
    lr_resnet50,
    no_weight_decay,
    sasa_resnet14,
    sasa_resnet26,
    sasa_resnet38,
    sasa_resnet50,
)
from convattn.models.san import (
    SAN,
    acmix_san10,
    acmix_san15,
    acmix_san19,
    san10,
    san15,
    san19,
)
from convattn.models.swin import (
    SwinTransformer,
    acmix_swin_small,
    acmix_swin_tiny,
    conv_swin_tiny,
    swin_small,
    swin_tiny,
)

resnet14, resnet26, resnet38, resnet50 = conv_resnet14, conv_resnet26, conv_resnet38, conv_resnet50

__all__ = [
    "PVT",
    "SAN",
    "ResNet",
    "SwinTransformer",
    "aa_resnet14",
    "aa_resnet26",
    "aa_resnet38",
    "aa_resnet50",
    "acmix_pvt_small",
    "acmix_pvt_tiny",
    "acmix_resnet14",
    "acmix_resnet26",
    "acmix_resnet38",
    "acmix_resnet50",
    "acmix_san10",
    "acmix_san15",
    "acmix_san19",
    "acmix_swin_small",
    "acmix_swin_tiny",
    "bot_resnet14",
    "bot_resnet26",
    "bot_resnet38",
    "bot_resnet50",
    "conv_resnet14",
    "conv_resnet18",
    "conv_resnet26",
    "conv_resnet34",
    "conv_resnet38",
    "conv_resnet50",
    "conv_swin_tiny",
    "halo_resnet14",
    "halo_resnet26",
    "halo_resnet38",
    "halo_resnet50",
    "involution_resnet14",
    "involution_resnet26",
    "involution_resnet38",
    "involution_resnet50",
    "lambda_resnet14",
    "lambda_resnet26",
    "lambda_resnet38",
    "lambda_resnet50",
    "list_models",
    "lr_resnet14",
    "lr_resnet26",
    "lr_resnet38",
    "lr_resnet50",
    "no_weight_decay",
    "pvt_v1_large",
    "pvt_v1_medium",
    "pvt_v1_small",
    "pvt_v1_tiny",
    "resnet14",
    "resnet26",
    "resnet38",
    "resnet50",
    "san10",
    "san15",
    "san19",
    "sasa_resnet14",
    "sasa_resnet26",
    "sasa_resnet38",
    "sasa_resnet50",
    "swin_small",
    "swin_tiny",
]


def list_models() -> list[str]:
    """The names under which this library's backbones stand in timm's registry.

    Example:
        >>> [name for name in list_models() if name.startswith("acmix_resnet")]
        ['acmix_resnet14', 'acmix_resnet26', 'acmix_resnet38', 'acmix_resnet50']
    """
    return sorted(name for module in (pvt, resnet, san, swin) for name in module.default_cfgs)
