"""The rows of the tables on loading images."""

from __future__ import annotations

from benchmarks.record import TIME, Record
from benchmarks.starting import PEAK_MEMORY

Rows = tuple[list[str], list[tuple[Record, list[str]]]]
"""Headings, and the cells of every row with its record."""


def loading(records: list[Record]) -> Rows:
    """Images a second, with quartiles, by the number of workers."""
    subjects = list(dict.fromkeys(name for record in records for name in record.results))
    rows = []
    for record in sorted(records, key=lambda one: (one.case["batch"], one.case["workers"])):
        images = f"{record.case['images']} of {record.case['side']}², cropped to {record.case['size']}²"
        cells = [images, str(record.case["batch"]), str(record.case["workers"])]
        rows.append((record, [*cells, *(_rate(record, name) for name in subjects)]))
    return ["images", "batch", "workers", *subjects], rows


def starting(records: list[Record]) -> Rows:
    """Seconds and memory of every form."""
    rows = []
    for record in records:
        for name, measured in record.results.items():
            images = "200" if name == record.base else f"{record.case['images']:,}"
            low, high = measured[TIME].range
            seconds = f"{measured[TIME].median:.1f} ({low:.1f}–{high:.1f})"
            rows.append((record, [name, images, seconds, f"{measured[PEAK_MEMORY].median / 2**20:.0f}"]))
    return ["data", "images", "seconds to the first step (range)", "peak MiB"], rows


def _rate(record: Record, name: str) -> str:
    if name not in record.results:
        return "–"
    times = record.results[name][TIME]
    low, high = times.quartiles
    return f"{1 / times.median:.0f} ({1 / high:.0f}–{1 / low:.0f})"
