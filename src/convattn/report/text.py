"""Numbers and names as a page shows them."""

import math
import unicodedata

NARROW = "\N{NARROW NO-BREAK SPACE}"
"""Between a number and its unit."""

HIDDEN = "\N{REPLACEMENT CHARACTER}"
"""In place of control characters, which would reorder or hide the text around them."""


def visible(text: str) -> str:
    """Return text with control characters, lone surrogates and the like in sight.

    Example:
        >>> visible("owl" + chr(0x202E)) == "owl" + HIDDEN
        True
    """
    return "".join(char if char in "\n\t" or unicodedata.category(char)[0] != "C" else HIDDEN for char in text)


def percent(value: float, digits: int = 1) -> str:
    """Return a part of one as a percentage, a dash for NaN.

    Example:
        >>> percent(0.98765).split(), percent(float("nan")), percent(1.0).split()
        (['98.8', '%'], '–', ['100', '%'])
    """
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.{0 if value in (0, 1) else digits}f}{NARROW}%"


def number(value: float, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits, a dash for NaN.

    Example:
        >>> number(0.123456), number(float("nan"))
        ('0.1235', '–')
    """
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def duration(seconds: float, gap: str = NARROW) -> str:
    """Return a time for people.

    Example:
        >>> [duration(seconds, " ") for seconds in (0.42, 42.3, 187, 9000)]
        ['0.4 s', '42 s', '3.1 min', '2.5 h']
    """
    if not math.isfinite(seconds):
        return "–"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f}{gap}{unit}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f}{gap}s"


def count(value: float) -> str:
    """Return a large count for people.

    Example:
        >>> count(512), count(10_488_123).split()
        ('512', ['10.49', 'M'])
    """
    if not math.isfinite(value):
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g}{NARROW}{unit}"
    return f"{value:.0f}"
