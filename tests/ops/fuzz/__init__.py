"""Random cases of every operator, every dimension independent of the others: ``python -m tests.ops.fuzz --help``."""
