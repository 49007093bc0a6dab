"""The page on YOLO: its YAML builds, its training runs. What it marks as Python runs with all pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel

from convattn.layers import ACmix, XVolution
from convattn.ultralytics import convert
from convattn.ultralytics.hooks import given_modules
from tests.test_docs import ROOT, blocks
from tests.ultralytics.scenes import write_data
from tests.ultralytics.test_life import SETTINGS

PAGE = (ROOT / "docs" / "yolo.md").read_text()


def test_the_yaml_builds() -> None:
    ((_, text),) = blocks(PAGE, "yaml")
    settings = {**yaml.safe_load(text), "nc": 5, "head": [[-1, 1, "Classify", ["nc"]]]}
    network = ClassificationModel(settings, verbose=False).eval()
    assert [type(layer.conv) for layer in network.model[1:3]] == [ACmix, XVolution]
    assert network.model[2].conv.attention.num_heads == 8
    assert network(torch.rand(1, 3, 64, 64))[0].shape == (1, 5)


@pytest.mark.slow
def test_the_training_runs(tmp_path: Path) -> None:
    (text,) = (body for _, body in blocks(PAGE, "") if "mine.train" in body)
    data = write_data(tmp_path / "data", "detect")
    image = next((tmp_path / "data" / "images" / "val").iterdir())
    text = text.replace('data="coco8.yaml", epochs=100', "**settings").replace("photo.jpg", str(image))
    text = text.replace("runs/detect/train", str(tmp_path / "train"))
    mine = convert(YOLO("yolo11n.yaml"), to="xvolution", where="model.8")
    names = {
        "mine": mine,
        "YOLO": YOLO,
        "settings": {**SETTINGS, "data": data, "project": str(tmp_path), "name": "train"},
    }
    exec(text.replace('format="onnx"', 'format="onnx", simplify=False'), names)
    assert given_modules(names["best"].model).keys() == given_modules(mine.model).keys()
    assert (tmp_path / "train" / "weights" / "best.onnx").is_file()
