"""The page on training scripts: test_docs runs its code; here is what comes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.layers import ACmix, XVolution
from tests.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "scripts.md").read_text()
SMALL = {"stem": "small", "channels": (16, 16, 24, 32)}

TRAIN = """
import argparse, timm, torch
from timm.optim import create_optimizer_v2
parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
args = parser.parse_args()
model = timm.create_model(args.model, num_classes=args.num_classes, stem="small", channels=(16, 16, 24, 32))
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
assert not any(id(p) in decayed for name, p in model.named_parameters() if name.endswith((".alpha", ".beta")))
loss = torch.nn.functional.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1]))
loss.backward()
optimizer.step()
print("trained", type(model.layer1[0].conv2).__name__, args.data)
"""
"""What timm's train.py does with ``--model``, in a few lines: it is no part of the package timm."""


def test_timms_script_finds_the_networks(tmp_path: Path) -> None:
    (script,) = (body for _, body in blocks(PAGE, "") if "runpy" in body)
    (tmp_path / "train_convattn.py").write_text(script)
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "train_convattn.py", "photos/", "--model", "acmix_resnet26", "--num-classes", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "trained ACmix photos/\n", done.stderr[-2000:]


def test_a_converted_detector_of_torchvision_trains() -> None:
    import torchvision

    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "min_size": 64, "max_size": 64}
    plain = torchvision.models.get_model("fasterrcnn_resnet50_fpn", **options).eval()
    model = convattn.convert(plain, to="xvolution", where="backbone.body.layer4")
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(images[0][None]), plain.backbone(images[0][None]))
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    operators = [module for module in model.modules() if isinstance(module, XVolution)]
    sum(model.train()(images, targets).values()).backward()
    optimizer.step()
    assert len(operators) == 3
    assert all(operator.attention_norm.weight.any() for operator in operators)


def test_hugging_faces_trainer_trains_saves_and_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.TimmWrapperConfig(architecture="acmix_resnet14", model_args=SMALL, num_labels=3)
    torch.manual_seed(0)
    network = transformers.TimmWrapperForImageClassification(config)
    before = {name: value.clone() for name, value in network.named_parameters()}
    data = [{"pixel_values": torch.rand(3, 32, 32), "labels": n % 3} for n in range(4)]
    settings = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(network, settings, train_dataset=data)
    trainer.train()
    names = {name for name, module in network.named_modules() if isinstance(module, ACmix)}
    assert len(names) == 4
    after = dict(network.named_parameters())
    assert all(not torch.equal(after[f"{name}.mix.alpha"], before[f"{name}.mix.alpha"]) for name in names)
    trainer.save_model(str(tmp_path / "saved"))
    again = type(network).from_pretrained(str(tmp_path / "saved")).eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(pixel_values=x).logits, network.eval()(pixel_values=x).logits)


def test_encoders_of_segmentation_models(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    unet = smp.Unet("tu-acmix_resnet26", encoder_weights=None, classes=3)
    assert sum(isinstance(module, ACmix) for module in unet.modules()) == 8
    assert unet.encoder.out_channels[-1] == timm.create_model("acmix_resnet26").num_features
    pyramid = smp.FPN("resnet18", encoder_weights=None, classes=3).eval()
    mine = convattn.convert(pyramid, to="xvolution", where=["encoder.layer4", "decoder"])
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(mine(x), pyramid(x))


def test_lora_on_a_converted_network_merges_exactly() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=3, zero_init_last=False)
    net = convattn.convert(plain, to="acmix", where="layer4")
    saved = ["fc", "mix"]
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=r".*\.projection", modules_to_save=saved))
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in trained if "projection" in name} == {"lora_A", "lora_B"}
    optimizer, x = torch.optim.Adam(trained.values(), 1e-2), torch.rand(4, 3, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert [name for name, p in trained.items() if ("lora_B" in name or name.endswith("alpha")) and not p.any()] == []
    assert sum(name.endswith("alpha") for name in trained) == 4
    with torch.no_grad():
        expected = wrapped.eval()(x)
        torch.testing.assert_close(wrapped.merge_and_unload()(x), expected, rtol=1e-4, atol=1e-5)
