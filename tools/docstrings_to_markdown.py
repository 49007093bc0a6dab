"""For the documentation site: docstrings hold Sphinx roles and directives, the site is Markdown.

A griffe extension, named in mkdocs.yml. tools/markdown_math.py then shows the equations.
"""

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")
MATH = re.compile(r"\.\. math:: ?(.*(?:\n[ \t]+\S.*)*)")
INLINE_MATH = re.compile(r":math:`([^`]+)`")


class DocstringsToMarkdown(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """The docstring with roles as code and equations as the pages have them."""
    text = MATH.sub(lambda found: f"```math\n{textwrap.dedent(found[1]).strip()}\n```", docstring)
    text = INLINE_MATH.sub(r"$\1$", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # the section that is shown as code
    return ROLE.sub(r"`\1`", text)
