"""How deep the layers of a network lie, for learning rates that fall with the depth."""

from typing import Any

from timm.models import group_parameters
from torch import nn

from convattn.convert.selection import is_meant, whole_name
from convattn.errors import UserError


def learning_rate_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied by: ``decay`` once for each layer above its own.

    The layers are those that timm groups the network by, the backbone of a detector or a segmenter; of a backbone
    that timm groups no more, they are its stages. What stands on the backbone is the last layer.

    Raises:
        UserError: a network that says nothing of its layers.

    Example:
        >>> import timm
        >>> scales = learning_rate_scales(timm.create_model("test_resnet"), 0.5)
        >>> scales["fc.weight"], scales["layer4.0.conv1.weight"], scales["bn1.weight"]
        (1.0, 0.5, 0.03125)
    """
    for prefix, part in model.named_modules():
        depths = _depths(part)
        if depths:
            own = {f"{prefix}.{name}".lstrip("."): depth for name, depth in depths.items()}
            names = [name for name, _ in model.named_parameters()]
            last = max(own.values()) + (len(own) < len(names))
            return {name: decay ** (last - own.get(name, last)) for name in names}
    raise UserError(
        f"optimizer.layer_decay: {type(model).__name__} says nothing of its layers (timm's group_matcher or"
        " feature_info): leave the setting out"
    )


def _depths(part: nn.Module) -> dict[str, int]:
    if callable(getattr(part, "group_matcher", None)):
        matcher: Any = part.group_matcher(coarse=False)  # type: ignore[operator]
        return group_parameters(part, matcher, reverse=True)
    info = getattr(getattr(part, "feature_info", None), "info", None)
    if info is None or hasattr(part, "model"):
        return {}
    order = {name: place for place, (name, _) in enumerate(part.named_modules())}
    ends = [
        max((place for name, place in order.items() if is_meant(stage["module"], whole_name(part, name))), default=-1)
        for stage in info
    ]
    return {
        name: sum(order[name.rpartition(".")[0]] > end for end in ends if end >= 0)
        for name, _ in part.named_parameters()
    }
