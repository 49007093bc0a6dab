"""Pages from Jinja2's templates: every text is escaped, characters that no font shows are made visible."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from convattn import __version__
from convattn.data.names import counted
from convattn.report.text import percent, visible

FOLDER = Path(__file__).parent / "templates"


def render(template: str, content: Mapping[str, Any], *folders: Path) -> str:
    """Return a page.

    Args:
        template: The name of its template: one of the report's, or of the folders', which are searched first.
        content: The template's variables.
        folders: Of further templates.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, FOLDER]),
        autoescape=True,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"counted": counted, "percent": percent}
    return environment.get_template(template).render(content, version=__version__)


def _finalized(value: object) -> object:
    """Make what comes from a run visible; :class:`~markupsafe.Markup` is the page's own."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
