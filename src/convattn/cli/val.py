"""``convattn val``."""


def val() -> None:
    """Not built yet."""
