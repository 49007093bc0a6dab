"""What of a network's settings opens files or the network: a file may say such things only with the user's word."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from convattn.errors import UserError

OPENS = ("pretrained", "checkpoint", "cache_dir")
"""How the options of ``timm.create_model`` begin that fetch or open files: ``pretrained``, ``pretrained_cfg``,
``pretrained_cfg_overlay``, ``checkpoint_path``, ``cache_dir`` and others."""

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")


def reaching(model: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (setting, value) of all that makes a network from more than this package and timm have.

    Args:
        model: The network's name; one with a colon names a source, as in ``hf-hub:owner/name``.
        options: Further settings of the network by name; those with options inside are looked through.

    Example:
        >>> list(reaching("resnet18", {"pretrained": False, "model_args": {"checkpoint_path": "/a/b.pth"}}))
        [('model_args.checkpoint_path', '/a/b.pth')]
        >>> list(reaching("hf-hub:timm/resnet18", {}))
        [('model', 'hf-hub:timm/resnet18')]
    """
    if ":" in model:
        yield "model", model
    yield from _reaching_in(options, "")


def _reaching_in(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str) and value.strip().lower().startswith(SOURCES):
        yield place, value
    for name, inner in value.items() if isinstance(value, Mapping) else _numbered(value):
        below = f"{place}.{name}" if place else str(name)
        if inner and str(name).startswith(OPENS):
            yield below, inner
        else:
            yield from _reaching_in(inner, below)


def _numbered(value: Any) -> Iterable[tuple[int, Any]]:
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
