"""What of a network's settings opens files or the network: a file may say such things only with the user's word."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from convattn.errors import UserError

OPENS = ("checkpoint_path", "pretrained", "weights", "backbone_weights")
"""The options of a recipe and of ``timm.create_model`` that open a file or fetch weights."""

FROM_WHERE = ("pretrained_", "cache_dir")
"""How those begin that say where ``pretrained`` weights come from and go to; without it they do nothing."""

OVERLAY = "pretrained_cfg_overlay"
"""The option of ``timm.create_model`` that says from where else ``pretrained`` weights come: its ``file``."""

HUBS = ("hf-hub:", "hf_hub:")
SOURCES = (*HUBS, "local-dir:")


def fetches(options: Any) -> bool:
    """Tell whether options of a network, or those inside them, ask for pretrained weights.

    Example:
        >>> fetches({"model_args": {"pretrained": True}}), fetches({"pretrained": False})
        (True, False)
    """
    return any((name == "pretrained" and bool(inner)) or fetches(inner) for name, inner in _inside(options))


def weights_file(model_args: Mapping[str, Any]) -> str | None:
    """Return the file that a network's options name for its pretrained weights.

    Example:
        >>> weights_file({"pretrained_cfg_overlay": {"file": "a.safetensors"}}), weights_file({})
        ('a.safetensors', None)
    """
    overlay = model_args.get(OVERLAY)
    return overlay.get("file") if isinstance(overlay, Mapping) else None


def reaching(model: str, options: Mapping[str, Any], *, fetching: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (setting, value) of all that makes a network from more than this package and timm have.

    Args:
        model: The network's name; one with a colon names a source, as in ``hf-hub:owner/name``.
        options: Further settings of the network by name; those with options inside are looked through.
        fetching: Whether pretrained weights are asked for, so that it matters from where.

    Example:
        >>> list(reaching("resnet18", {"pretrained": False, "model_args": {"checkpoint_path": "/a/b.pth"}}))
        [('model_args.checkpoint_path', '/a/b.pth')]
        >>> list(reaching("hf-hub:timm/resnet18", {}))
        [('model', 'hf-hub:timm/resnet18')]
    """
    if ":" in model:
        yield "model", model
    yield from _reaching_in(options, "", fetching)


def _reaching_in(value: Any, place: str, fetching: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str) and value.strip().lower().startswith(SOURCES):
        yield place, value
    for name, inner in _inside(value):
        below = f"{place}.{name}" if place else str(name)
        if inner and (name in OPENS or (fetching and str(name).startswith(FROM_WHERE))):
            yield below, inner
        else:
            yield from _reaching_in(inner, below, fetching)


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def refuse_reaching(source: str, found: Iterable[tuple[str, Any]], *, trust: bool) -> None:
    """Raise where a file names what it may only with the user's word.

    Example:
        >>> refuse_reaching("a.yaml", reaching("resnet18", {}), trust=False)
        >>> refuse_reaching("a.yaml", reaching("local-dir:/home/b", {}), trust=True)
    """
    for name, value in found:
        if not trust:
            raise UserError(
                f"{source}: {name}: {value!r} would open other files or the network; if you trust this file, say so"
                " with --trust (trust=True)"
            )
