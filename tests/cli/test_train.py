import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from convattn.cli import app
from convattn.errors import UserError
from convattn.tasks.recipes import read_recipe
from convattn_command import share_cores

QUICK = [
    "model=acmix_resnet14",
    "model_args={stem: small, channels: [8, 8, 8, 8]}",
    "data.image_size=8",
    "epochs=1",
    "batch_size=256",
]


pytestmark = pytest.mark.usefixtures("here")


def test_training_the_digits_tells_what_a_person_needs(here: Path) -> None:
    done = CliRunner().invoke(app, ["train", *QUICK])
    assert done.exit_code == 0, done.output
    run = (here / "runs" / "latest").resolve()
    assert "on scikit-learn's digits: 10 classes, 1437 training and 360 validation images" in done.output
    assert "recipe digits: 1 epochs, batch 256" in done.output
    assert "epoch 1/1  train loss" in done.output
    assert "validation accuracy" in done.output
    for name in ("", "/report.html", "/weights.safetensors"):
        assert f"runs/{run.name}{name}\n" in done.output
    assert f"convattn predict --run runs/{run.name} IMAGE" in done.output
    for noise in ("Lightning", "litlogger", "GPU available", "num_workers", "Warning"):
        assert noise not in done.output
    assert (run / "report.html").is_file()
    again = CliRunner().invoke(app, ["train", "--resume", "runs/latest"])
    assert again.exit_code == 0
    assert "is finished already" in again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--lr", "0.01"],
            "recipe folder-small: 1 epochs, batch 16, adamw, images of 128 px, seed 0\non the CPU, 1 thread",
        ),
        (["--model", "test_resnet"], "recipe folder: 1 epochs, batch 64, adamw, images of 224 px, seed 0\non the CPU"),
        (["data.image_size=24", "model_args={stem: small, channels: [8, 8, 8, 8]}"], "recipe folder: 1 epochs"),
    ],
)
def test_a_cpu_gets_a_folders_small_recipe_unless_a_size_is_given(
    arguments: list[str], said: str, photos: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["train", "--data", str(photos), "--epochs", "1", "data.workers=0", *arguments])
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert "caution     12 validation images say little: one is 8.3 points, the 95% interval" in done.output
    recipe = read_recipe(here / "runs" / "latest" / "config.yaml")
    assert recipe.optimizer.lr == (0.01 if "--lr" in arguments else 0.001)


def test_a_finished_run_is_not_led_on(trained: Path) -> None:
    for arguments, key in ((["--epochs", "20"], "epochs=20"), (["--lr", "0.1"], "optimizer.lr=0.1")):
        done = CliRunner().invoke(app, ["train", "--resume", str(trained), *arguments])
        assert isinstance(done.exception, UserError)
        name = key.partition("=")[0]
        assert f"a resumed run keeps its {name}; what may change: trainer." in str(done.exception)
        assert str(done.exception).endswith(f"start a new run: convattn train --recipe {trained}/config.yaml {key}")


def test_help_shows_examples() -> None:
    done = CliRunner().invoke(app, ["train", "--help"])
    assert done.exit_code == 0
    for word in ("convattn train --data photos/", "--resume", "--strategy", "--precision", "KEY=VALUE"):
        assert word in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epoch=3"], "unknown key 'epoch': did you mean epochs?"),
        (["--recipe", "digit"], "did you mean digits?"),
        (["--model", "resnet5"], "no model 'resnet5'"),
        (["--data", "absent"], "absent: no such folder"),
        (["--recipe", "imagenet-resnet"], "give a folder of them with --data"),
        (["--resume", "absent"], "no such run: absent"),
        (["--resume", "absent", "--recipe", "digits"], "leave --recipe out"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--out", "taken"], "cannot make a run folder in taken"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, here: Path) -> None:
    (here / "taken").write_text("a file")
    done = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("package", ["lightning", "sklearn"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from convattn.cli import app\n"
        "from convattn.errors import UserError\n"
        "try: app(['train'], standalone_mode=False)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert 'pip install "convattn[train]"' in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "before", "after"),
    [
        (["train", "--data", "x"], {}, {"GOMP_SPINCOUNT": "1000"}),
        (["predict"], {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        (["bench", "train"], {}, {}),
        ([], {}, {}),
    ],
)
def test_what_reads_images_shares_its_cores(words: list[str], before: dict[str, str], after: dict[str, str]) -> None:
    share_cores(words, before)
    assert before == after
