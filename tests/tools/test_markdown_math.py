"""Equations of the pages become MathML while the site is built."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import fromstring

import markdown
import pytest

from tools.markdown_math import FENCE, equation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if FENCE.search(path.read_text()) or " $" in path.read_text()]


def rendered(text: str) -> str:
    return markdown.markdown(text, extensions=["fenced_code", "tools.markdown_math"])


def test_a_fence_and_a_line_become_mathematics() -> None:
    page = rendered("With $q_i \\cdot k$ it is\n\n```math\n\\tilde f = 1 \\tag{4}\n```\n\nand so on.")
    assert page.count("<math") == 2
    assert "<span>(4)</span>" in page
    assert "tag" not in page


@pytest.mark.parametrize(
    "text", ["`$x$` in code", "```python\nx = '$y$'\n```", "it costs 5$ and 6$", "from $HOME to $PATH", "\\$x$"]
)
def test_what_is_no_equation_stays(text: str) -> None:
    assert "<math" not in rendered(text)


def test_an_equation_has_its_number_apart() -> None:
    page = fromstring(equation("a = b \\tag{S1}").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))
    assert [child.tag for child in page] == ["math", "span"]
    assert page[1].text == "(S1)"


def test_there_are_pages_with_equations() -> None:
    assert {path.name for path in PAGES} >= {"paper.md", "x-volution.md", "operators.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_equation_of_a_page_is_converted_whole(path: Path) -> None:
    """An unknown command of TeX would be shown as its name."""
    for found in FENCE.finditer(path.read_text()):
        shown = equation(found["tex"])
        assert "\\" not in shown, found["tex"]
        assert "&amp;" not in shown, found["tex"]
