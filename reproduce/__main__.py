"""``python -m reproduce``."""

from convattn.cli import main
from reproduce.command import app

if __name__ == "__main__":
    main(app)
