"""What SECURITY.md promises of files from other people, where no other test holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from convattn.errors import UserError
from convattn.tasks.checkpoint_io import AtomicCheckpointIO
from convattn.tasks.checkpoints import read_checkpoint
from convattn.tasks.recipes import parse_overrides, read_recipe

ROOT = Path(__file__).parent.parent


def test_a_run_whose_checkpoint_holds_code_is_not_resumed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "optimizer_states": [Trap()], "hyper_parameters": Trap()}, path)
    with pytest.raises(UserError, match="holds Python objects besides weights, which could run code"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="holds Python objects besides weights, which could run code"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "sprung").exists()


def test_a_recipe_with_code_is_refused(tmp_path: Path) -> None:
    value = f"!!python/object/apply:os.mkdir [{tmp_path / 'sprung'}]"
    recipe = tmp_path / "config.yaml"
    recipe.write_text(f"model: x\nmodel_args: {{a: {value}}}\n")
    with pytest.raises(UserError, match=r"config.yaml: not YAML: could not determine a constructor"):
        read_recipe(recipe)
    with pytest.raises(UserError, match=r"model_args\.a: not YAML"):
        parse_overrides([f"model_args.a={value}"])
    assert not (tmp_path / "sprung").exists()


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 12
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)), (file, name)


def test_every_promise_names_a_test() -> None:
    table = re.search(r"## What is promised\n+((?:\|.*\n)+)", (ROOT / "SECURITY.md").read_text())
    assert table is not None
    for row in table[1].splitlines()[2:]:
        assert "::test_" in row, row
