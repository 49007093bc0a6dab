"""The ``convattn`` command."""


def main() -> None:
    """Run the command."""
