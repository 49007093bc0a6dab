"""A training run's self-contained HTML page."""

from convattn.report.page import write_report

__all__ = ["write_report"]
