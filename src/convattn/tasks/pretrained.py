"""Pretrained weights: all tensors of the network and no others, unless a recipe asks for less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from convattn.data.names import shortened
from convattn.tasks.config import Recipe
from convattn.tasks.hub import at_hand


@contextmanager
def whole_weights(recipe: Recipe) -> Iterator[None]:
    """Refuse, inside, pretrained weights that lack tensors of the network or have others than its own.

    The classifier is left aside: it starts anew where the classes differ, and a network of maps has none. timm passes
    over all other tensors too once it has left out the classifier. ``weights_match: partial`` loads what fits.

    Raises:
        ValueError: tensors are missing or unexpected.
    """
    load, faults = nn.Module.load_state_dict, list[str]()

    def noted(module: nn.Module, state: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        config = getattr(module, "pretrained_cfg", None)
        if not isinstance(config, Mapping):  # not the network itself
            return load(module, state, *arguments, **options)
        if recipe.weights_match == "partial":
            return load(module, _fitting(module, state), strict=False)
        found = load(module, state, strict=False)
        faults.extend(_faults(found.missing_keys, found.unexpected_keys, config.get("classifier") or ()))
        return found

    nn.Module.load_state_dict = noted  # type: ignore[method-assign]  # timm does not return what it passed over
    try:
        with at_hand(recipe):
            yield
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
    if faults:
        raise ValueError(
            f"the weights are those of another network: {'; '.join(faults)} (weights_match=partial loads what fits)"
        )


def _faults(missing: Sequence[str], unexpected: Sequence[str], classifier: str | Sequence[str]) -> Iterator[str]:
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    missing = [name for name in missing if not name.startswith(tuple(f"{head}." for head in heads))]
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            yield f"{len(names)} {what}: {shortened(names)}"


def _fitting(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    own = module.state_dict()
    return {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
