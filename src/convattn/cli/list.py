"""``convattn list``."""


def list_models() -> None:
    """Not built yet."""
