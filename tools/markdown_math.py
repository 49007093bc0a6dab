"""For the documentation site: TeX in a page becomes MathML while the site is built, so no page loads a script or font.

A Markdown extension, named in mkdocs.yml. It reads what GitHub reads: a fence of ``math`` and ``$...$`` in a line.
``\\tag{n}`` numbers an equation.
"""

import re
import textwrap
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

FENCE = re.compile(r"^(?P<indent> *)```math\n(?P<tex>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
INLINE = r"(?<![\\\w$])\$(?! )([^$\n]+?)(?<! )\$(?!\w)"
TAG = re.compile(r"\\tag\{(\w+)\}")
BEFORE_FENCES, AFTER_CODE = 28, 185
"""Priorities: other fences have 25, code in a line 190."""


class MathExtension(Extension):
    """Equations of a page as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the two forms."""
        md.preprocessors.register(_Fences(md), "math-fences", BEFORE_FENCES)
        md.inlinePatterns.register(_Inline(INLINE, md), "math-inline", AFTER_CODE)


class _Fences(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return FENCE.sub(self._placeholder, "\n".join(lines)).split("\n")

    def _placeholder(self, found: re.Match[str]) -> str:
        return found["indent"] + self.md.htmlStash.store(equation(found["tex"]))


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


def equation(tex: str) -> str:
    """A displayed equation with its number, if it has one, at the right."""
    number = TAG.search(tex)
    math = convert(" ".join(textwrap.dedent(TAG.sub("", tex)).split()), display="block")
    return f'<div class="equation">{math}{f"<span>({number[1]})</span>" if number else ""}</div>'


def makeExtension(**options: Any) -> MathExtension:
    """What Markdown calls for an extension's name."""
    return MathExtension(**options)
