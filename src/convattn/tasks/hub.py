"""Weights and networks of a hub: where it does not answer, the cache alone is asked, and a person told so at once."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from convattn.tasks.config import Recipe
from convattn.tasks.reach import HUBS, fetches

PATIENCE = 4.0
"""Seconds that the hub has to answer."""

UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, URLError)
"""What fetching raises where there is no network; URLError is that of weights that lie on other servers."""


@contextmanager
def at_hand(recipe: Recipe) -> Iterator[None]:
    """Ask the cache alone inside, where a recipe's network comes from a hub that does not answer.

    The hub's client would try it for about a minute otherwise.
    """
    options = {"pretrained": recipe.pretrained, "model_args": recipe.model_args, "network.args": recipe.network.args}
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
