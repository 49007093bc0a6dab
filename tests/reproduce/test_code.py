"""What a run's name depends on."""

import pytest

from convattn.tasks.recipes import load_recipe
from reproduce.code import PACKAGE, WITHOUT, meaning, recipe_hash, source_hash


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ({"trainer.devices": 2}, True),
        ({"checkpoint.every_seconds": 1.0}, True),
        ({"seed": 1}, False),
        ({"model_args.depth": 2}, False),
        ({"optimizer.lr": 0.5}, False),
        ({"trainer.precision": "16-mixed"}, False),
    ],
)
def test_a_recipe_is_another_where_its_result_is(overrides, same):
    assert (recipe_hash(load_recipe("digits", overrides)) == recipe_hash(load_recipe("digits"))) is same


def test_comments_and_docstrings_are_no_other_code():
    code = "class A:\n    x = 1\n    def f(self):\n        return self.x\n"
    told = (
        '"""Module."""\nclass A:\n    """A."""\n    x = 1  # one\n\n    def f(self):\n        "F."\n'
        "        return self.x\n"
    )
    assert meaning(code) == meaning(told)
    assert meaning(code) != meaning(code.replace("1", "2"))
    assert meaning("def f():\n    'Only words.'\n") == meaning("def f():\n    pass\n")


def test_the_rooms_left_out_exist():
    assert len(source_hash()) == 64
    assert all((PACKAGE / room).is_dir() for room in WITHOUT)
