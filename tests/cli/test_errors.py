"""What the command does with an error that a person can mend."""

import pytest

from tests.cli.conftest import Command


@pytest.mark.parametrize("path", ["[/red]x", "[red]nowhere"])
def test_a_path_that_looks_like_markup_is_shown_as_it_is(command: Command, path: str) -> None:
    result = command("predict", "x.jpg", "--run", path)
    assert result.code == 2
    assert path in result.err
