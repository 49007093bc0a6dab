"""Trained models loaded from wherever they lie, or refused with a reason; predictions and scores."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from convattn.data.images import ImageError
from convattn.data.types import SkippedFile
from convattn.errors import UserError
from convattn.tasks.checkpoints import DESCRIPTION, describe, write_weights
from convattn.tasks.config import DataConfig, Recipe
from convattn.tasks.inference import LoadedModel, Prediction, evaluate, load_model, predict_images

CLASSES = ["crow", "jay", "owl", "tit", "wren", "kite", "rook"]
MODEL = "test_resnet"
DESCRIBED = describe(
    Recipe(model=MODEL, data=DataConfig(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))), CLASSES
)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=len(CLASSES)).eval()


@pytest.fixture
def run(tmp_path: Path, trained: nn.Module) -> Path:
    """A run folder with everything that inference reads."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {MODEL}\n")
    write_weights(folder / "weights.safetensors", trained.state_dict(), DESCRIBED)
    state = {f"model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, DESCRIPTION: DESCRIBED}, folder / "checkpoints" / "best.ckpt")
    return folder


@dataclass(frozen=True)
class Noise:
    """Labelled noise; the indices in ``bad`` cannot be read."""

    labels: list[int]
    bad: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise ImageError(self.name(index), "the file is empty", "fetch it again")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8))

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"noise {index}"


def logits_of(model: nn.Module, loaded: LoadedModel, images: list[Image.Image]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.stack([loaded.transform(image) for image in images]))


class TestLoading:
    @pytest.mark.parametrize("where", [".", "weights.safetensors", "checkpoints/best.ckpt"])
    def test_from_a_run_or_a_file(self, run: Path, trained: nn.Module, where: str) -> None:
        loaded = load_model(run / where)
        assert (loaded.classes, loaded.name, loaded.input_size) == (CLASSES, MODEL, (3, 32, 32))
        assert not loaded.model.training
        images = [Noise([0]).image(0)]
        assert torch.equal(logits_of(loaded.model, loaded, images), logits_of(trained, loaded, images))

    def test_the_transform_is_the_described_one(self, run: Path) -> None:
        grey = load_model(run).transform(Image.new("RGB", (50, 40), (128, 128, 128)))
        assert grey.shape == (3, 32, 32)
        expected = [(128 / 255 - mean) / 0.2 for mean in (0.5, 0.4, 0.3)]
        assert grey.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)

    def test_a_run_without_weights_gives_its_checkpoint(self, run: Path) -> None:
        (run / "weights.safetensors").unlink()
        assert load_model(run).source == run / "checkpoints" / "best.ckpt"
        (run / "checkpoints" / "best.ckpt").rename(run / "checkpoints" / "last.ckpt")
        assert load_model(run).source == run / "checkpoints" / "last.ckpt"

    def test_an_acmix_model_with_arguments(self, tmp_path: Path) -> None:
        args = {"stem": "small", "channels": [16, 32, 32, 32]}
        model = timm.create_model("acmix_resnet14", num_classes=len(CLASSES), **args)
        described = {**DESCRIBED, "model": "acmix_resnet14", "model_args": json.dumps(args)}
        write_weights(tmp_path / "weights.safetensors", model.state_dict(), described)
        loaded = load_model(tmp_path)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.model.state_dict().items())


class TestLoadingErrors:
    def refuse(self, path: Path, *parts: str) -> None:
        with pytest.raises(UserError) as caught:
            load_model(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        for part in parts:
            assert part in message
        assert len(message) < 600
        assert "\n" not in message

    def described(self, path: Path, weights: nn.Module, /, **changes: str) -> Path:
        write_weights(path, weights.state_dict(), {**DESCRIBED, **changes})
        return path

    def test_missing(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "runs" / "latest", "no such run or weights", "convattn train")

    def test_another_folder(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, "not a run folder")

    def test_a_run_before_its_first_checkpoint(self, run: Path) -> None:
        (run / "weights.safetensors").unlink()
        (run / "checkpoints" / "best.ckpt").unlink()
        self.refuse(run, "no weights yet", f"convattn train --resume {run}")

    @pytest.mark.parametrize("name", ["weights.safetensors", "best.ckpt", "notes.txt", "weights.pth"])
    @pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 40], ids=["empty", "text", "noise"])
    def test_no_checkpoint(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        self.refuse(tmp_path / name, "safetensors" if name.endswith("tensors") else "not a checkpoint")

    @pytest.mark.parametrize("name", ["weights.safetensors", "checkpoints/best.ckpt"])
    @pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
    def test_cut_short(self, run: Path, name: str, part: float) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * part)])
        self.refuse(run / name, "damaged" if name.endswith("tensors") else "not a checkpoint")

    def test_a_checkpoint_with_code_is_not_run(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "sprung",)

        torch.save({"state_dict": {}, "hook": Trap()}, tmp_path / "trap.ckpt")
        self.refuse(tmp_path / "trap.ckpt", "could run code")
        assert not (tmp_path / "sprung").exists()

    def test_weights_that_say_nothing_of_themselves(self, tmp_path: Path, trained: nn.Module) -> None:
        save_file(trained.state_dict(), tmp_path / "bare.safetensors")
        torch.save(trained.state_dict(), tmp_path / "bare.pth")
        torch.save({"state_dict": trained.state_dict()}, tmp_path / "other.ckpt")
        self.refuse(tmp_path / "bare.safetensors", "not what model they belong to")
        self.refuse(tmp_path / "bare.pth", "it has no state_dict")
        self.refuse(tmp_path / "other.ckpt", "not what model they belong to")

    def test_of_another_model(self, tmp_path: Path, trained: nn.Module) -> None:
        path = self.described(tmp_path / "weights.safetensors", trained, model="test_vit")
        self.refuse(path, "weights of another model than test_vit", "missing: ", "unexpected: ", " more")

    def test_of_another_number_of_classes(self, tmp_path: Path, trained: nn.Module) -> None:
        path = self.described(tmp_path / "weights.safetensors", trained, classes='["a", "b"]')
        self.refuse(path, "of another shape: ", "(7, ", "instead of (2, ")

    def test_an_unknown_model(self, tmp_path: Path, trained: nn.Module) -> None:
        path = self.described(tmp_path / "w.safetensors", trained, model="nonet9", convattn_version="7.1")
        self.refuse(path, "'nonet9' (written by convattn 7.1) cannot be built here", "convattn list")

    @pytest.mark.parametrize("changes", [{"classes": "["}, {"model_args": "3"}, {"input_size": "7"}, {"mean": "x"}])
    def test_a_damaged_description(self, tmp_path: Path, trained: nn.Module, changes: dict[str, str]) -> None:
        self.refuse(self.described(tmp_path / "w.safetensors", trained, **changes), "description is")

    def test_a_model_that_diverged(self, tmp_path: Path, trained: nn.Module) -> None:
        state = {name: value.clone() for name, value in trained.state_dict().items()}
        next(iter(state.values())).view(-1)[0] = math.nan
        write_weights(tmp_path / "weights.safetensors", state, DESCRIBED)
        with pytest.raises(UserError, match=r"not finite \(.*\), the training diverged; train again"):
            load_model(tmp_path)

    @pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu"])
    def test_a_device_that_is_not_here(self, run: Path, device: str) -> None:
        with pytest.raises(UserError, match=rf"device '{device}' cannot be used here: .*; use cpu"):
            load_model(run, device=device)


class TestPredicting:
    def test_in_order_with_bad_images_named(self, run: Path, trained: nn.Module, tmp_path: Path) -> None:
        loaded = load_model(run)
        files = [tmp_path / f"{index}.png" for index in range(7)]
        for index, file in enumerate(files):
            Noise([0]).image(index).save(file)
        files[2].write_bytes(b"")
        files.insert(5, tmp_path / "nowhere.png")
        answers = list(predict_images(loaded, files, top_k=3, batch_size=3))
        assert [answer.file if isinstance(answer, Prediction) else answer.path for answer in answers] == [
            str(file) for file in files
        ]
        assert [answer.reason for answer in answers if isinstance(answer, SkippedFile)] == [
            "the file is empty",
            "no such file",
        ]
        expected = logits_of(trained, loaded, [Noise([0]).image(1)]).softmax(-1)[0].topk(3)
        second = answers[1]
        assert isinstance(second, Prediction)
        assert second.classes == [CLASSES[index] for index in expected.indices]
        assert second.probabilities == pytest.approx(expected.values.tolist(), abs=1e-5)

    def test_no_more_classes_than_there_are(self, run: Path, tmp_path: Path) -> None:
        Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
        (answer,) = predict_images(load_model(run), [tmp_path / "one.png"], top_k=50)
        assert isinstance(answer, Prediction)
        assert sorted(answer.classes) == sorted(CLASSES)
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)

    def test_only_bad_images(self, run: Path, tmp_path: Path) -> None:
        answers = list(predict_images(load_model(run), [tmp_path / "gone.png"] * 3, batch_size=2))
        assert [type(answer) for answer in answers] == [SkippedFile] * 3

    def test_no_class_asked_for(self, run: Path) -> None:
        with pytest.raises(UserError, match="top_k=0: ask for at least one class"):
            list(predict_images(load_model(run), ["a.png"], top_k=0))


class TestEvaluating:
    def test_against_the_whole_set_at_once(self, run: Path, trained: nn.Module) -> None:
        images = Noise([index % 6 for index in range(40)], bad=(3, 39))
        loaded = load_model(run)
        seen: list[tuple[int, int]] = []
        scores = evaluate(loaded, images, batch_size=7, progress=lambda *place: seen.append(place))
        kept = [index for index in range(40) if index not in images.bad]
        labels = torch.tensor([images.label(index) for index in kept])
        logits = logits_of(trained, loaded, [images.image(index) for index in kept])
        order = logits.argsort(-1, descending=True)
        assert scores.images == 38
        assert scores.figures["top1"] == pytest.approx((order[:, 0] == labels).float().mean().item())
        assert scores.figures["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(-1).float().mean().item())
        assert scores.figures["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-5)
        assert [row["images"] for row in scores.per_class] == labels.bincount(minlength=7).tolist()
        assert sum(row["right"] for row in scores.per_class) == round(scores.figures["top1"] * 38)
        assert math.isnan(scores.per_class[6]["accuracy"])
        assert [file.path for file in scores.skipped] == ["noise 3", "noise 39"]
        assert seen[-1] == (40, 40)

    def test_a_label_out_of_range(self, run: Path) -> None:
        with pytest.raises(UserError, match="noise 1: its label is 7, the model's classes are 0 to 6"):
            evaluate(load_model(run), Noise([0, 7]))

    def test_nothing_readable(self, run: Path) -> None:
        with pytest.raises(UserError, match="none of the 2 images can be read; the first: noise 0: the file is empty"):
            evaluate(load_model(run), Noise([0, 1], bad=(0, 1)))

    def test_an_output_that_is_not_finite(self, run: Path) -> None:
        loaded = load_model(run)
        broken = replace(loaded, model=nn.Sequential(loaded.model, nn.Threshold(math.inf, math.nan)))
        with pytest.raises(UserError, match="output is not finite, its training diverged"):
            evaluate(broken, Noise([0]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_answers_in_float32(run: Path, precision: Any) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, half = load_model(run).model, load_model(run, precision=precision).model
    with torch.no_grad():
        expected, found = whole(x), half(x)
    assert type(half) is type(whole)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
