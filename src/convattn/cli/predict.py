"""``convattn predict``."""


def predict() -> None:
    """Not built yet."""
