"""The commands that the tables print, read back as the command line reads them."""

import shlex

from convattn.tasks.config import Recipe
from convattn.tasks.recipes import load_recipe, parse_overrides

OPTIONS = {"--model": "model", "--data": "data.folder", "--devices": "trainer.devices"}


def recipe_of(command: str) -> Recipe:
    """The recipe that ``convattn train ...`` would train."""
    program, verb, *words = shlex.split(command)
    assert (program, verb, words[0]) == ("convattn", "train", "--recipe")
    name, words, overrides = words[1], words[2:], {}
    while words and words[0].startswith("--"):
        key, value, *words = words
        overrides[OPTIONS[key]] = int(value) if value.isdecimal() else value
    return load_recipe(name, overrides | parse_overrides(words))
