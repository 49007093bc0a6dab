"""Weights and networks of a hub: where it does not answer, the cache alone is asked, and a person told so at once."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import timm
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models._hub import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, check_cached_file

from convattn.tasks.config import Recipe
from convattn.tasks.reach import HUBS, fetches, weights_file

PATIENCE = 4.0
"""Seconds that the hub has to answer."""

UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, URLError)
"""What fetching raises where there is no network; URLError is that of weights that lie on other servers."""


@contextmanager
def at_hand(recipe: Recipe) -> Iterator[None]:
    """Ask the cache alone inside, where a recipe's network comes from a hub that does not answer.

    The hub's client would try it for about a minute otherwise.
    """
    fetched = recipe.pretrained and weights_file(recipe.model_args) is None
    options = {"pretrained": fetched, "model_args": recipe.model_args, "network.args": recipe.network.args}
    if constants.HF_HUB_OFFLINE or not (fetches(options) or recipe.model.startswith(HUBS)) or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def unreachable(error: BaseException) -> str:
    """Return what to tell a person where fetching found no network, an empty text for any other error.

    Example:
        >>> unreachable(ValueError("no such depth"))
        ''
    """
    if not isinstance(error, UNREACHABLE):
        return ""
    return (
        f"what it fetches is not in this machine's cache ({constants.HF_HUB_CACHE}), and the network does not answer:"
        f" connect to {constants.ENDPOINT}, copy the cache of a machine that has it, or do without (pretrained=false)"
    )


def why_no_weights(model: str, *, fetching: bool = True) -> str:
    """Return why the pretrained weights of a network cannot be had here, an empty text where they can.

    Args:
        model: The network's name in timm's registry.
        fetching: Whether they may come over the network; else the caches alone are looked through.

    Example:
        >>> why_no_weights("conv_resnet14")
        'conv_resnet14 has no pretrained weights'
    """
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None or not cfg.has_weights:
        return f"{model} has no pretrained weights"
    if _is_cached(cfg):
        return ""
    missing = f"the weights of {model} ({cfg.hf_hub_id or cfg.url}) are not in this machine's cache"
    if not fetching:
        return missing
    if constants.HF_HUB_OFFLINE:
        return f"{missing}, and HF_HUB_OFFLINE is set"
    return "" if _answers() else f"{missing}, and the network does not answer"


def _is_cached(cfg: Any) -> bool:
    if not cfg.hf_hub_id:
        return bool(check_cached_file(cfg.url, check_hash=False))
    repository, _, revision = cfg.hf_hub_id.partition("@")
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    place = {"cache_dir": constants.HF_HUB_CACHE, "revision": revision or None}
    return any(isinstance(try_to_load_from_cache(repository, name, **place), str) for name in names)


def _answers() -> bool:
    """Tell whether the hub gives any answer in time, looking up its name included, which has no limit of its own."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urlopen(constants.ENDPOINT, timeout=PATIENCE).close()
        except HTTPError:
            pass
        except URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # other clients may know other certificates
                return
        except OSError:
            return
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)
