"""``convattn info``."""


def info() -> None:
    """Not built yet."""
