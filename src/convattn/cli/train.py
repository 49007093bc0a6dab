"""``convattn train``."""


def train() -> None:
    """Not built yet."""
