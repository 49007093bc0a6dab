"""``python -m benchmarks``."""

from benchmarks.command import app
from convattn.cli import main

if __name__ == "__main__":
    main(app)
