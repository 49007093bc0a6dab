"""Backbones that carry the operators, in timm's registry.

The plain ResNets are ``conv_resnet26/38/50`` for timm and ``resnet26/38/50`` here: timm's own ``resnet26`` is another
network. As in ``timm.models``, each file exports the networks that it registers.

Example:
    >>> import timm, convattn
    >>> timm.create_model("acmix_resnet26", features_only=True, out_indices=(2, 4)).feature_info.channels()
    [512, 2048]
"""

from typing import TYPE_CHECKING

from convattn.layers.path_mix import no_weight_decay as no_weight_decay
from convattn.models import pvt, resnet, san, swin, vit

# the files have tables of one name, such as DEPTHS, which are none of their exports
from convattn.models.pvt import *  # noqa: F403
from convattn.models.pvt import PVT as PVT
from convattn.models.resnet import *  # type: ignore[assignment]  # noqa: F403
from convattn.models.resnet import ResNet as ResNet
from convattn.models.san import *  # type: ignore[assignment]  # noqa: F403
from convattn.models.san import SAN as SAN
from convattn.models.swin import *  # type: ignore[assignment]  # noqa: F403
from convattn.models.swin import SwinTransformer as SwinTransformer
from convattn.models.vit import *  # type: ignore[assignment]  # noqa: F403
from convattn.models.vit import VisionTransformer as VisionTransformer

resnet14, resnet26 = resnet.conv_resnet14, resnet.conv_resnet26
resnet38, resnet50 = resnet.conv_resnet38, resnet.conv_resnet50


def list_models() -> list[str]:
    """The names of this library's backbones in timm's registry.

    Example:
        >>> [name for name in list_models() if name.startswith("acmix_resnet")]
        ['acmix_resnet14', 'acmix_resnet18', 'acmix_resnet26', 'acmix_resnet38', 'acmix_resnet50']
    """
    return sorted(name for module in (pvt, resnet, san, swin, vit) for name in module.default_cfgs)


if not TYPE_CHECKING:  # timm's ``register_model`` lists each network in its file's ``__all__``
    __all__ = ["PVT", "SAN", "ResNet", "SwinTransformer", "VisionTransformer", "list_models", "no_weight_decay"]
    __all__ += ["resnet14", "resnet26", "resnet38", "resnet50"]
    __all__ += [name for module in (pvt, resnet, san, swin, vit) for name in module.__all__]
