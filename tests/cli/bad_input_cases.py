"""Bad files, settings, weights, run folders and data sets: what each is, and a part of the message that it gives."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

LONG = "x" * 300
DEEP = 2000


@dataclass(frozen=True)
class Stock:
    """Good files to make bad ones of: never written to."""

    run: Path
    unfinished: Path
    photos: Path
    coco: Path
    pairs: Path
    image: Path


Make = Callable[[Path, Stock], list[Any]]


@dataclass(frozen=True)
class Case:
    """One bad input: ``make`` writes it into a folder and returns the command's arguments.

    ``lists`` marks what is answered with a list below the message: problems, layouts.
    """

    name: str
    make: Make = field(repr=False)
    says: str = ""
    lists: bool = False


def recipes() -> list[Case]:
    """Recipe files."""

    def case(name: str, content: str | bytes, says: str) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            data = content.encode() if isinstance(content, str) else content
            (folder / "mine.yaml").write_bytes(data)
            return ["train", "--recipe", folder / "mine.yaml", "--out", folder / "runs"]

        return Case(f"recipe-{name}", make, says)

    ok = "model: resnet10t\n"
    return [
        case("empty", "", "the key model is missing"),
        case("word", "hello", "the file must be keys with values"),
        case("list", "[1, 2]", "the file must be keys with values"),
        case("open-bracket", "model: [", "not YAML"),
        case("tab", "model:\n\tresnet10t", "not YAML"),
        case("latin-1", "about: caf\u00e9\n".encode("latin-1"), "cannot be read as a recipe"),
        case("utf-16", ok.encode("utf-16"), "cannot be read as a recipe"),
        case("noise", bytes(range(128, 256)), "cannot be read as a recipe"),
        case("NUL", b"model: a\0b", "not YAML"),
        case("deep-lists", "model: " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
        case("deep-keys", "model: " + "{a: " * DEEP + "1" + "}" * DEEP, "nested too deeply"),
        case("deep-args", ok + "model_args: {a: " + "[" * 40 + "]" * 40 + "}", "nested too deeply"),
        case("date", ok + "model_args: {since: 2026-01-31}", "model_args.since is a date"),
        case("time", ok + "model_args: {since: 2026-01-31 10:00:00}", "model_args.since is a datetime"),
        case("wrong-date", ok + "about: 2026-99-99", "a value cannot be read"),
        case("date-as-model", "model: 2026-01-31", "model is a date"),
        case("5000-digits", ok + f"epochs: {'9' * 5000}", "a value cannot be read"),
        case("400-digits", ok + f"epochs: 1{'0' * 400}", "a number of about 401 digits"),
        case(
            "400-digits-rate", ok + f"optimizer: {{lr: 1{'0' * 400}}}", "optimizer.lr is a number of about 401 digits"
        ),
        case("hexadecimal-giant", ok + f"seed: 0x{'f' * 6000}", "seed is a number of about 7226 digits"),
        case("binary", ok + "about: !!binary aGVsbG8=", "about is a bytes"),
        case("wrong-binary", ok + "about: !!binary a", "not YAML"),
        case("set", ok + "model_args: !!set {a, b}", "model_args is a set"),
        case("python-object", ok + "about: !!python/object/apply:os.system [ls]", "not YAML"),
        case("unknown-tag", ok + "about: !mine x", "not YAML"),
        case("empty-int", ok + "epochs: !!int ''", "a value cannot be read"),
        case("wrong-bool", ok + "pretrained: !!bool maybe", "a value cannot be read"),
        case("wrong-float", ok + "optimizer: {lr: !!float abc}", "a value cannot be read"),
        case("wrong-timestamp", ok + "about: !!timestamp yesterday", "a value cannot be read"),
        case("unhashable-key", "{[a, b]: 1}", "not YAML"),
        case("escaped-NUL", 'model: "a\\0b"', "a character that text does not have"),
        case("half-character", 'model: "\\ud800"', "a character that text does not have"),
        case("half-character-key", ok + 'model_args: {"\\udfff": 1}', "a character that text does not have"),
        case("alias-to-itself", ok + "model_args: &a {b: *a}", "an alias (*name) inside what it names"),
        case("unknown-alias", ok + "about: *nowhere", "not YAML"),
        case("huge", ok + "# " + "x" * 1_100_000, "1,100,019 bytes"),
        case("unknown-key", "modle: resnet10t", "unknown key modle: did you mean model?"),
        case("key-of-number", ok + "3: 4", "unknown key 3"),
        case("key-of-date", ok + "2026-01-01: 4", "is a date"),
        case("text-epochs", ok + "epochs: many", "epochs must be a whole number, got 'many'"),
        case("no-section", ok + "optimizer: 3", "optimizer must be keys with values"),
        case("null-model", "model: null", "model must be text, got None"),
        case("hf-hub", "model: hf-hub:timm/resnet18.a1_in1k", "model: 'hf-hub:timm/resnet18.a1_in1k' would open"),
        case("hf_hub", "model: hf_hub:timm/resnet18", "would open other files or the network"),
        case("HF-HUB", "model: HF-HUB:timm/resnet18", "would open other files or the network"),
        case("local-dir", "model: local-dir:/etc", "would open other files or the network"),
        case("unknown-scheme", "model: 'https://example.org/model'", "would open other files or the network"),
        case("pretrained", ok + "pretrained: true", "pretrained: True would open"),
        case("checkpoint-path", ok + "model_args: {checkpoint_path: /etc/passwd}", "model_args.checkpoint_path"),
        case("pretrained-cfg", ok + "model_args: {pretrained_cfg: {file: /a.pth}}", "model_args.pretrained_cfg"),
        case("overlay", ok + "model_args: {pretrained_cfg_overlay: {url: a}}", "model_args.pretrained_cfg_overlay"),
        case("cache-dir", ok + "model_args: {cache_dir: /tmp/elsewhere}", "model_args.cache_dir"),
        case("args-pretrained", ok + "model_args: {pretrained: true}", "model_args.pretrained"),
        case("hub-in-args", ok + "model_args: {backbone: [hf-hub:a/b]}", "model_args.backbone.0: 'hf-hub:a/b'"),
        case(
            "head-args",
            ok + "task: detection\nnetwork: {args: {backbone_args: {checkpoint_path: /a}}}",
            "network.args.backbone_args.checkpoint_path",
        ),
        case("per-model", ok + "per_model: {'*': {pretrained: true}}", "pretrained: True would open"),
    ]


def settings() -> list[Case]:
    """Settings and paths on the command line."""

    def case(name: str, *words: str, says: str, lists: bool = False) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            return ["train", *(word.format(folder=folder, photos=stock.photos) for word in words)]

        return Case(f"setting-{name}", make, says, lists)

    return [
        case("unknown", "epoch=3", says="unknown key 'epoch': did you mean epochs?"),
        case("no-value", "epochs", says="'epochs' is no setting"),
        case("no-key", "=3", says="is no setting"),
        case("text", "epochs=many", says="epochs must be a whole number"),
        case("negative", "epochs=-3", says="epochs must be at least 1"),
        case("open-bracket", "epochs=[1", says="epochs: not YAML"),
        case("date", "model=2026-01-31", says="is a date"),
        case("wrong-date", "model=2026-13-32", says="a value cannot be read"),
        case("5000-digits", f"epochs={'7' * 5000}", says="a value cannot be read"),
        case("400-digits", f"optimizer.lr=1{'0' * 400}", says="a number of about 401 digits"),
        case("deep", "model_args=" + "[" * DEEP + "]" * DEEP, says="nested too deeply"),
        case("NUL", 'model="a\\0b"', says="a character that text does not have"),
        case("half-character", 'model="\\ud800"', says="a character that text does not have"),
        case("binary", "model=!!binary aGk=", says="is a bytes"),
        case("no-model", "model=resnet5", says="no model 'resnet5'"),
        case("model-is-a-path", "model=/etc/passwd", says="no model '/etc/passwd'"),
        case("unknown-source", "--model", "ftp:/a/b", says="model ftp:/a/b"),
        case("no-such-folder-of-a-model", "--model", "local-dir:/nowhere", says="model local-dir:/nowhere"),
        case("no-such-checkpoint", "--model", "resnet10t", "model_args.checkpoint_path=/nowhere.pth", says="resnet10t"),
        case("checkpoint-is-text", "--model", "resnet10t", "model_args.checkpoint_path=/etc/passwd", says="resnet10t"),
        case("model-args", "--model", "resnet10t", "model_args.depth=3", says="depth"),
        case("model-args-type", "--model", "resnet10t", "model_args.in_chans=many", says="resnet10t"),
        case("model-args-zero", "--model", "acmix_resnet14", "model_args.num_heads=0", says="acmix_resnet14"),
        case("model-args-list", "--model", "acmix_resnet14", "model_args.channels=[8]", says="acmix_resnet14"),
        case("model-args-huge", "--model", "acmix_resnet14", f"model_args.channels={2**40}", says="acmix_resnet14"),
        case("section", "optimizer=3", says="optimizer is a section"),
        case("below-a-value", "epochs.more=3", says="epochs is one value"),
        case("no-recipe", "--recipe", "digit", says="no recipe 'digit': did you mean digits?"),
        case("no-recipe-file", "--recipe", "nowhere.yaml", says="nowhere.yaml"),
        case("recipe-home", "--recipe", "~nobody-here/a.yaml", says="no such user"),
        case("long-recipe", "--recipe", f"{'x/' * 3000}a.yaml", says="File name too long"),
        case("recipe-folder", "--recipe", "{folder}/a.yaml", says="a.yaml"),
        case("no-data", "--data", "nowhere", says="nowhere: no such folder", lists=True),
        case("data-home", "--data", "~nobody-here/photos", says="no such user"),
        case("long-data", "--data", LONG, says="File name too long"),
        case("very-long-data", "--data", f"{'x/' * 3000}", says="File name too long"),
        case("data-device", "--data", "/dev/null", says="/dev/null", lists=True),
        case("data-file", "--data", "/etc/passwd", says="/etc/passwd", lists=True),
        case("detection-home", "--task", "detection", "--data", "~nobody-here/a", says="no such user"),
        case("detection-passwd", "--task", "detection", "--data", "/etc/passwd", says="is no JSON"),
        case("detection-device", "--task", "detection", "--data", "/dev/full", says="/dev/full", lists=True),
        case("segmentation-home", "--task", "segmentation", "--data", "~nobody-here/a", says="no such user"),
        case("head", "--head", "upernet", says="say what it is to learn"),
        case("task-and-recipe", "--task", "detection", "--recipe", "digits", says="is for classification"),
        case("resume-nowhere", "--resume", "nowhere", says="no such run"),
        case("resume-passwd", "--resume", "/etc/passwd", says="is not a run folder"),
        case("resume-long", "--resume", LONG, says="File name too long"),
        case("resume-and-task", "--resume", "x", "--task", "detection", says="leave --task out"),
        case("optimizer", "optimizer.name=adamq", says="no optimizer 'adamq'"),
        case("interpolation", "data.interpolation=cubist", says="data.interpolation must be one of"),
        case("mean", "data.mean=[1,2]", says="data.mean must be a list of 3 numbers"),
        case("accelerator", "trainer.accelerator=abacus", "model=resnet10t", "--out", "{folder}/o", says="Lightning"),
        case("precision", "trainer.precision=7", "model=resnet10t", "--out", "{folder}/o", says="Lightning"),
        case("devices", "--devices", "none", "model=resnet10t", "--out", "{folder}/o", says="Lightning"),
        case("out-below-a-file", "model=resnet10t", "--out", "/etc/passwd/runs", says="cannot make a run folder"),
        case("out-in-proc", "model=resnet10t", "--out", "/proc/runs", says="cannot make a run folder"),
        case("out-long", "model=resnet10t", "--out", LONG, says="cannot make a run folder"),
    ]


def headers() -> list[Case]:
    """What a weights file says of itself, of another form."""

    def case(name: str, says: str, **changes: str | None) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            raw = (stock.run / "weights.safetensors").read_bytes()
            size = int.from_bytes(raw[:8], "little")
            header = json.loads(raw[8 : 8 + size])
            for key, value in changes.items():
                header["__metadata__"].pop(key) if value is None else header["__metadata__"].update({key: value})
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            (folder / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
            return ["predict", stock.image, "--run", folder / "w.safetensors"]

        return Case(f"header-{name}", make, f"w.safetensors: {says}")

    damaged = "its description is incomplete or damaged: "
    return [
        case("no-format", "holds weights, but not what model", format=None),
        case("other-format", "holds weights, but not what model", format="timm"),
        case("no-model", damaged + "model is missing", model=None),
        case("no-classes", damaged + "classes is missing", classes=None),
        case("no-mean", damaged + "mean is missing", mean=None),
        case("unknown-model", "its model 'nonet9'", model="nonet9"),
        case("empty-model", "its model ''", model=""),
        case("model-path", "its model '../../x'", model="../../x"),
        case("NUL-model", damaged + "model: the value is", model="a\0b"),
        case("hf-hub", "model: 'hf-hub:timm/resnet18' would open", model="hf-hub:timm/resnet18"),
        case("hf_hub", "model: 'hf_hub:timm/resnet18' would open", model="hf_hub:timm/resnet18"),
        case("local-dir", "model: 'local-dir:/etc' would open", model="local-dir:/etc"),
        case("checkpoint-path", "model_args.checkpoint_path: ", model_args='{"checkpoint_path": "/etc/passwd"}'),
        case("pretrained", "model_args.pretrained: True", model_args='{"pretrained": true}'),
        case("pretrained-cfg", "model_args.pretrained_cfg: ", model_args='{"pretrained_cfg": {"url": "a"}}'),
        case("cache-dir", "model_args.cache_dir: ", model_args='{"cache_dir": "/tmp/elsewhere"}'),
        case("args-no-json", damaged + "model_args: not JSON", model_args="{"),
        case("args-list", damaged + "model_args must be", model_args="[1]"),
        case("args-pairs", damaged + "model_args must be", model_args='[["a", 1]]'),
        case("args-unknown", "its model 'test_resnet'", model_args='{"deep": 1}'),
        case("args-type", "its model 'test_resnet'", model_args='{"in_chans": "many"}'),
        case("args-zero", "weights of another model", model_args='{"in_chans": 0}'),
        case("args-features", "", model_args='{"features_only": true}'),
        case("args-huge", "", model_args=f'{{"in_chans": {2**50}}}'),
        case("args-400-digits", damaged + "model_args: in_chans is", model_args=f'{{"in_chans": 1{"0" * 400}}}'),
        case("args-5000-digits", damaged + "model_args: not JSON", model_args=f'{{"in_chans": {"1" * 5000}}}'),
        case("args-deep", damaged + "model_args: nested too deeply", model_args="[" * 100_000),
        case("classes-text", damaged + "classes must be names", classes='"owl"'),
        case("classes-none", damaged + "classes must be names", classes="[]"),
        case("classes-numbers", damaged + "classes must be names", classes="[1, 2, 3]"),
        case("classes-nested", damaged + "classes must be names", classes='[["a"], ["b"], ["c"]]'),
        case("classes-fewer", "weights of another model", classes='["a", "b"]'),
        case("classes-half-character", damaged + "classes: 0 is", classes='["\\ud800", "b", "c"]'),
        case("size-number", damaged + "input_size must be", input_size="7"),
        case("size-short", damaged + "input_size must be", input_size="[3, 32]"),
        case("size-zero", damaged + "input_size must be", input_size="[3, 0, 0]"),
        case("size-negative", damaged + "input_size must be", input_size="[3, -32, -32]"),
        case("size-true", damaged + "input_size must be", input_size="[3, true, true]"),
        case("size-fraction", damaged + "input_size must be", input_size="[3, 32.5, 32]"),
        case("size-channels", damaged + "input_size must be 3", input_size="[4, 32, 32]"),
        case("size-huge", damaged + "input_size must be 3", input_size="[3, 1000000, 1000000]"),
        case("mean-text", damaged + "mean must be", mean='"x"'),
        case("mean-short", damaged + "mean must be", mean="[0.5]"),
        case("mean-nan", damaged + "mean must be", mean="[NaN, 0.5, 0.5]"),
        case("mean-400-digits", damaged + "mean: 0 is", mean=f"[1{'0' * 400}, 0.5, 0.5]"),
        case("std-zero", damaged + "std must be above 0", std="[0, 0, 0]"),
        case("std-infinite", damaged + "std must be", std="[1e999, 1, 1]"),
        case("std-null", damaged + "std must be", std="[null, 1, 1]"),
        case("interpolation", damaged, interpolation="cubist"),
        case("task", damaged + "task must be one of", task="poetry"),
        case("network-list", damaged + "network must be", network="[]"),
        case("network-key", damaged + "unknown key network.heads", network='{"heads": 1}'),
        case("head-of-a-classifier", "", task="segmentation"),
        case("evaluation-number", damaged + "evaluation must be", evaluation="3"),
        case("evaluation-mode", damaged + "evaluation.mode must be", evaluation='{"mode": "twice"}'),
    ]


def weights_files() -> list[Case]:
    """Files that are given as weights."""

    def case(name: str, file: str, content: Callable[[bytes], bytes], says: str = "safetensors") -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            (folder / file).write_bytes(content((stock.run / "weights.safetensors").read_bytes()))
            return ["predict", stock.image, "--run", folder / file]

        return Case(f"weights-{name}", make, says)

    def with_header(header: bytes) -> Callable[[bytes], bytes]:
        return lambda _: len(header).to_bytes(8, "little") + header + bytes(64)

    name = "w.safetensors"
    tensor = b'{"a":{"dtype":"%s","shape":%s,"data_offsets":[0,%d]}}'
    return [
        case("empty", name, lambda _: b""),
        case("text", name, lambda _: b"hello"),
        case("half", name, lambda whole: whole[: len(whole) // 2], "damaged"),
        case("cut-header", name, lambda whole: whole[:100], "damaged"),
        case("longer", name, lambda whole: whole + b"more", "damaged"),
        case("huge-header", name, lambda whole: struct.pack("<Q", 2**62) + whole[8:], "damaged"),
        case("no-json", name, with_header(b"not json"), "damaged"),
        case("list", name, with_header(b"[1, 2]"), "damaged"),
        case("deep", name, with_header(b"[" * 50_000), "damaged"),
        case("unknown-type", name, with_header(tensor % (b"F7", b"[16]", 64)), "damaged"),
        case("negative-shape", name, with_header(tensor % (b"F32", b"[-16]", 64)), "damaged"),
        case("other-size", name, with_header(tensor % (b"F32", b"[99]", 64)), "damaged"),
        case("beyond", name, with_header(tensor % (b"F32", b"[16]", 6400)), "damaged"),
        case("no-description", name, with_header(tensor % (b"F32", b"[16]", 64)), "not what model they belong to"),
        case("text-as-checkpoint", "w.ckpt", lambda _: b"hello", "not a checkpoint"),
        case("empty-as-checkpoint", "w.ckpt", lambda _: b"", "not a checkpoint"),
        case("renamed", "w.ckpt", lambda whole: whole, "not a checkpoint"),
        case("old-pickle", "w.pth", lambda _: b"\x80\x02}q\x00.", "not a checkpoint"),
        case("gzip", "w.pth", lambda _: b"\x1f\x8b" + bytes(64), "not a checkpoint"),
    ]


def checkpoints() -> list[Case]:
    """Checkpoints of another form; each is given to ``predict`` and, where training reads more, to ``--resume``."""

    def as_weights(name: str, content: Callable[[dict[str, Any]], Any], says: str) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            stored = torch.load(stock.run / "checkpoints" / "last.ckpt", weights_only=True)
            torch.save(content(stored), folder / "a.ckpt")
            return ["predict", stock.image, "--run", folder / "a.ckpt"]

        return Case(f"checkpoint-{name}", make, says)

    def resumed(name: str, content: Callable[[dict[str, Any]], Any], says: str) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            shutil.copytree(stock.unfinished, folder / "run")
            last = folder / "run" / "checkpoints" / "last.ckpt"
            torch.save(content(torch.load(last, weights_only=True)), last)
            return ["train", "--resume", folder / "run"]

        return Case(f"resume-{name}", make, says)

    def without(key: str) -> Callable[[dict[str, Any]], Any]:
        return lambda stored: {name: value for name, value in stored.items() if name != key}

    def having(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda stored: {**stored, key: value}

    def progress(**changes: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda stored: {**stored, "convattn_progress": {**stored["convattn_progress"], **changes}}

    def first_weight(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
        def changed(stored: dict[str, Any]) -> Any:
            name = next(iter(stored["state_dict"]))
            return {**stored, "state_dict": {**stored["state_dict"], name: change(stored["state_dict"][name])}}

        return changed

    def optimizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        return lambda stored: {**stored, "optimizer_states": [change(stored["optimizer_states"][0])]}

    other, wrote = "not a checkpoint that convattn train wrote", "no checkpoint of convattn train"
    return [
        as_weights("list", lambda _: [1, 2], wrote),
        as_weights("tensor", lambda _: torch.zeros(3), wrote),
        as_weights("nothing", lambda _: None, wrote),
        as_weights("no-weights", without("state_dict"), wrote),
        as_weights("list-of-weights", having("state_dict", [1]), wrote),
        as_weights("empty-weights", having("state_dict", {}), "missing: "),
        as_weights("numbers-for-names", having("state_dict", {1: torch.zeros(1)}), wrote),
        as_weights("numbers-for-weights", having("state_dict", {"model.a": 1}), wrote),
        as_weights("sparse", first_weight(lambda one: one.to_sparse()), wrote),
        as_weights("complex", first_weight(lambda one: one.to(torch.complex64)), "of another type"),
        as_weights("integers", first_weight(lambda one: one.to(torch.int32)), "of another type"),
        as_weights("shape", first_weight(lambda one: one[:1]), "of another shape"),
        as_weights("nan", first_weight(lambda one: one * float("nan")), "are not finite"),
        as_weights("no-description", without("convattn"), "not what model they belong to"),
        as_weights("list-of-descriptions", having("convattn", [1]), wrote),
        as_weights("numbers-in-description", having("convattn", {"format": "convattn", "model": 3}), "model is 3"),
        as_weights("hub", lambda one: {**one, "convattn": {**one["convattn"], "model": "hf-hub:a/b"}}, "would open"),
        resumed("list", lambda _: [1, 2], other),
        resumed("no-weights", without("state_dict"), other),
        resumed("no-optimizer", without("optimizer_states"), other),
        resumed("no-schedulers", without("lr_schedulers"), other),
        resumed("no-version", without("pytorch-lightning_version"), other),
        resumed("odd-version", having("pytorch-lightning_version", "latest"), other),
        resumed("no-place", without("convattn_progress"), other),
        resumed("list-for-place", having("convattn_progress", [0]), other),
        resumed("text-epoch", progress(epoch="one"), "convattn_progress.epoch is 'one'"),
        resumed("negative-epoch", progress(epoch=-1), "convattn_progress.epoch is -1"),
        resumed("fraction-batch", progress(batch=0.5), "convattn_progress.batch is 0.5"),
        resumed("nan-seconds", progress(seconds=float("nan")), "convattn_progress.seconds is nan"),
        resumed("more-place", progress(more=1), "convattn_progress has other entries"),
        resumed("no-loss", progress(loss_sum=None), "convattn_progress.loss_sum"),
        resumed("vector-loss", progress(loss_sum=torch.zeros(3)), "convattn_progress.loss_sum"),
        resumed("other-model", having("convattn", {"task": "classification", "model": "x"}), "was written for model x"),
        resumed("empty-weights", having("state_dict", {}), "its weights are others"),
        resumed("sparse-weights", first_weight(lambda one: one.to_sparse()), "is not an ordinary tensor"),
        resumed("shape", first_weight(lambda one: one[:1]), "its weights are others"),
        resumed("two-optimizers", lambda one: {**one, "optimizer_states": one["optimizer_states"] * 2}, "2 optimizers"),
        resumed("number-for-optimizer", optimizer(lambda _: 3), "its optimizer cannot go on"),
        resumed("no-groups", optimizer(lambda one: {"state": one["state"]}), "its optimizer cannot go on"),
        resumed("empty-groups", optimizer(lambda one: {**one, "param_groups": []}), "its optimizer cannot go on"),
        resumed("text-state", optimizer(lambda one: {**one, "state": {"a": 1}}), "its optimizer cannot go on"),
        resumed(
            "moment-shape",
            optimizer(lambda one: {**one, "state": {0: {**one["state"][0], "exp_avg": torch.zeros(1, 1, 1, 1)}}}),
            "its optimizer cannot go on",
        ),
        resumed(
            "setting-gone",
            optimizer(lambda one: {**one, "param_groups": [{"params": one["param_groups"][0]["params"]}]}),
            "its optimizer cannot go on",
        ),
    ]


def damaged_checkpoints(flips: int = 24) -> list[Case]:
    """A checkpoint with one byte changed, cut short, or packed in another way."""

    def case(name: str, change: Callable[[bytes], bytes], resume: bool, says: str = "damaged") -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            shutil.copytree(stock.unfinished, folder / "run")
            last = folder / "run" / "checkpoints" / "last.ckpt"
            last.write_bytes(change(last.read_bytes()))
            return ["train", "--resume", folder / "run"] if resume else ["predict", stock.image, "--run", last]

        return Case(f"damaged-{name}", make, says)

    def flip(part: float) -> Callable[[bytes], bytes]:
        def changed(whole: bytes) -> bytes:
            place = _in_data(whole, part)
            return whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]

        return changed

    def repacked(whole: bytes) -> bytes:
        import io

        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as to:
            for one in archive.infolist():
                to.writestr(one.filename, archive.read(one))
        return packed.getvalue()

    cuts = [0.0, 0.001, 0.3, 0.9, 0.999]
    return [
        *(case(f"flip-{number}", flip(number / flips), resume=number % 2 == 0) for number in range(flips)),
        *(
            case(f"cut-{part}", lambda whole, part=part: whole[: int(len(whole) * part)], True, "not a")
            for part in cuts
        ),
        case("deflated", repacked, False, "compressed"),
        case("zeros-behind", lambda whole: whole + bytes(100_000), True, "not a checkpoint"),
    ]


def _in_data(whole: bytes, part: float) -> int:
    """Return a place inside the content of an archive's members, so far into them."""
    import io

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [one for one in archive.infolist() if one.file_size]
        chosen = members[int(part * len(members))]
        start = chosen.header_offset
        names, extra = struct.unpack("<HH", whole[start + 26 : start + 30])
        return start + 30 + names + extra + int(part * (chosen.file_size - 1))


def run_folders() -> list[Case]:
    """Run folders with something wrong in them."""

    def case(name: str, change: Callable[[Path], Any], arguments: str, says: str, *, finished: bool = True) -> Case:
        lists = name in ("config-no-folder", "other-data")

        def make(folder: Path, stock: Stock) -> list[Any]:
            run = folder / "run"
            shutil.copytree(stock.run if finished else stock.unfinished, run)
            change(run)
            return [word.format(run=run, image=stock.image, photos=stock.photos) for word in arguments.split()]

        return Case(f"run-{name}", make, says, lists)

    def config(text: str) -> Callable[[Path], Any]:
        return lambda run: (run / "config.yaml").write_text(text)

    def added(text: str) -> Callable[[Path], Any]:
        return lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text() + text)

    def replaced(old: str, new: str) -> Callable[[Path], Any]:
        def change(run: Path) -> None:
            text = (run / "config.yaml").read_text()
            assert old in text
            (run / "config.yaml").write_text(text.replace(old, new))

        return change

    def gone(*names: str) -> Callable[[Path], Any]:
        def change(run: Path) -> None:
            for name in names:
                (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)

        return change

    def folder_for(name: str) -> Callable[[Path], Any]:
        return lambda run: ((run / name).unlink(), (run / name).mkdir())

    predict, val, resume = "predict {image} --run {run}", "val --run {run}", "train --resume {run}"
    return [
        case("passwd", lambda run: None, "predict {image} --run /etc/passwd", "not a checkpoint"),
        case("passwd-val", lambda run: None, "val --run /etc/passwd", "not a checkpoint"),
        case("null-device", lambda run: None, "predict {image} --run /dev/null", "/dev/null"),
        case("zero-device", lambda run: None, "predict {image} --run /dev/zero", "/dev/zero"),
        case("long", lambda run: None, f"predict {{image}} --run {LONG}", "File name too long"),
        case("long-val", lambda run: None, f"val --run {'x/' * 3000}", "File name too long"),
        case("nowhere", lambda run: None, "val --run nowhere", "no such run or weights"),
        case("empty", lambda run: (shutil.rmtree(run), run.mkdir()), predict, "not a run folder"),
        case(
            "no-weights",
            gone("weights.safetensors", "checkpoints"),
            predict,
            "this run has no weights yet",
        ),
        case("device", lambda run: None, "predict {image} --run {run} --device abacus", "device 'abacus'"),
        case(
            "weights-is-a-folder",
            folder_for("weights.safetensors"),
            "predict {image} --run {run}/weights.safetensors",
            "not a run folder",
        ),
        case("config-is-gone", gone("config.yaml"), "val --run {run}", "no run folder with a config.yaml"),
        case("config-is-a-folder", folder_for("config.yaml"), resume, "is not a run folder", finished=False),
        case("config-is-empty", config(""), resume, "the key model is missing", finished=False),
        case(
            "config-is-noise",
            lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"),
            resume,
            "cannot be read as a recipe",
            finished=False,
        ),
        case("config-deep", added("about: " + "[" * DEEP + "]" * DEEP), resume, "", finished=False),
        case("config-deep-val", config("model: " + "[" * DEEP), val, "nested too deeply"),
        case("config-unknown", added("\nepoch: 3\n"), resume, "unknown key epoch", finished=False),
        case("config-hub", replaced("model: test_resnet", "model: hf-hub:a/b"), resume, "would open", finished=False),
        case(
            "config-local",
            replaced("model: test_resnet", "model: local-dir:/etc"),
            resume,
            "would open",
            finished=False,
        ),
        case(
            "config-args",
            replaced("model_args: {}", "model_args: {checkpoint_path: /etc/passwd}"),
            resume,
            "would open",
            finished=False,
        ),
        case(
            "config-pretrained",
            lambda run: (
                replaced("pretrained: false", "pretrained: true")(run),
                (run / "checkpoints/last.ckpt").unlink(),
            ),
            resume,
            "pretrained: True would open",
            finished=False,
        ),
        case(
            "config-other-model", replaced("model: test_resnet", "model: test_vit"), resume, "test_vit", finished=False
        ),
        case(
            "config-NUL-folder",
            replaced("folder: /", 'folder: "\\0" #'),
            resume,
            "a character that text does not have",
            finished=False,
        ),
        case("config-no-folder", replaced("folder: /", "folder: /nowhere/"), resume, "no such folder", finished=False),
        case("config-home", replaced("folder: /", "folder: ~nobody-here/"), resume, "no such user", finished=False),
        case("config-home-val", replaced("folder: /", "folder: ~nobody-here/"), val, "no such user"),
        case(
            "classes-others",
            lambda run: (run / "classes.txt").write_text("a\nb\n"),
            resume,
            "was trained on the classes a, b",
            finished=False,
        ),
        case(
            "classes-latin-1",
            lambda run: (run / "classes.txt").write_bytes(b"caf\xe9\n"),
            resume,
            "classes.txt",
            finished=False,
        ),
        case("checkpoint-is-a-folder", folder_for("checkpoints/last.ckpt"), resume, "last.ckpt", finished=False),
        case(
            "best-is-gone",
            lambda run: ((run / "checkpoints/best.ckpt").unlink(), _finish(run)),
            resume,
            "best.ckpt",
            finished=False,
        ),
        case(
            "best-is-noise",
            lambda run: ((run / "checkpoints/best.ckpt").write_bytes(b"x" * 99), _finish(run)),
            resume,
            "best.ckpt",
            finished=False,
        ),
        case("metrics-is-a-folder", folder_for("metrics.csv"), resume, "metrics.csv", finished=False),
        case(
            "metrics-is-noise",
            lambda run: (run / "metrics.csv").write_bytes(b"\xff\xfe,\n\0"),
            resume,
            "metrics.csv",
            finished=False,
        ),
        case(
            "metrics-other-columns",
            lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
            resume,
            "metrics.csv",
            finished=False,
        ),
        case(
            "another-setting",
            lambda run: None,
            resume + " optimizer.lr=1",
            "a resumed run keeps its optimizer.lr",
            finished=False,
        ),
        case("other-data", lambda run: None, "val --run {run} --data nowhere", "nowhere"),
        case("reproduce-passwd", lambda run: None, "reproduce --from /etc/passwd --out {run}/o", "is not a run folder"),
        case("reproduce-other", lambda run: None, "reproduce --from {run} --out {run}/o", "fits no row"),
        case(
            "reproduce-unfinished",
            lambda run: None,
            "reproduce --from {run} --out {run}/o",
            "is not finished",
            finished=False,
        ),
    ]


def _finish(run: Path) -> None:
    """Let the checkpoint stand at the run's end, so that a resume only evaluates and reports."""
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    stored["convattn_progress"] |= {"epoch": 2, "batch": 0}
    torch.save(stored, run / "checkpoints" / "last.ckpt")


def coco() -> list[Case]:
    """COCO annotations."""

    def case(name: str, change: Callable[[dict[str, Any]], Any], says: str, task: str = "instances") -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            shutil.copytree(stock.coco, folder / "coco")
            content = json.loads((folder / "coco" / "annotations.json").read_text())
            changed = change(content)
            content = content if changed is None else changed
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / "coco" / "annotations.json").write_bytes(data)
            return ["train", "--task", task, "--data", folder / "coco", "--out", folder / "runs"]

        return Case(f"coco-{name}", make, says, lists=True)

    def of(part: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content[part][0].update(values)

    def raw(part: str, key: str, text: str) -> Callable[[dict[str, Any]], Any]:
        """Put a text into the JSON that Python would not write."""

        def change(content: dict[str, Any]) -> bytes:
            content[part][0][key] = "PLACE"
            return json.dumps(content).replace('"PLACE"', text).encode()

        return change

    giant = 10**400
    return [
        case("empty", lambda _: b"", "is empty"),
        case("noise", lambda _: b"\xff\xfe\xfd", "cannot be read"),
        case("truncated", lambda content: json.dumps(content).encode()[:-9], "is truncated"),
        case("list", lambda _: [1], "holds a list at its top"),
        case("deep", lambda _: b"[" * 100_000, "nested too deeply"),
        case("no-images", lambda content: content.pop("images") and None, "images: is missing"),
        case("images-object", lambda content: content.update(images={}), "is dict, expected a list"),
        case("no-categories", lambda content: content.update(categories=[]), "no category"),
        case("5000-digits", raw("annotations", "area", "9" * 5000), "holds a number that cannot be read"),
        case("giant-id", of("images", id=giant), "at most 63 bits"),
        case("giant-annotation-id", of("annotations", id=2**63), "at most 63 bits"),
        case("giant-category-id", of("categories", id=giant), "at most 63 bits"),
        case("giant-width", of("images", width=giant), "expected a number of pixels"),
        case("giant-height", of("images", height=2**63), "expected a number of pixels"),
        case("giant-box", of("annotations", bbox=[0, 0, giant, giant]), "annotations.bbox"),
        case("giant-corner", of("annotations", bbox=[-giant, 0, 4, 4]), "annotations.bbox"),
        case("infinite-box", of("annotations", bbox=[0, 0, float("inf"), 4]), "not finite"),
        case("nan-box", of("annotations", bbox=[0, 0, float("nan"), 4]), "not finite"),
        case("text-box", of("annotations", bbox="all"), "the box is 'all'"),
        case("short-box", of("annotations", bbox=[1, 2]), "the box is [1, 2]"),
        case("giant-area", of("annotations", area=giant), "annotations.area"),
        case("nan-area", of("annotations", area=float("nan")), "annotations.area"),
        case("giant-polygon", of("annotations", segmentation=[[0, 0, giant, 0, 4, 4]]), "annotations.segmentation"),
        case("nan-polygon", of("annotations", segmentation=[[0, 0, float("nan"), 0, 4, 4]]), "not finite"),
        case("text-polygon", of("annotations", segmentation=["a"]), "annotations.segmentation"),
        case("short-polygon", of("annotations", segmentation=[[0, 0, 1]]), "a polygon has 3 numbers"),
        case("giant-runs", of("annotations", segmentation={"size": [37, 53], "counts": [giant]}), "run lengths"),
        case("negative-runs", of("annotations", segmentation={"size": [37, 53], "counts": [-1, 1962]}), "run lengths"),
        case("runs-of-noise", of("annotations", segmentation={"size": [37, 53], "counts": "\u00ff"}), "run lengths"),
        case(
            "runs-half-character", of("annotations", segmentation={"size": [37, 53], "counts": "\ud800"}), "run lengths"
        ),
        case("NUL-file", of("images", file_name="a\0b.png"), "no file name has"),
        case("half-character-file", of("images", file_name="\ud800.png"), "no file name has"),
        case("long-file", of("images", file_name=LONG + ".png"), "File name too long"),
        case("no-file", of("images", file_name="nowhere.png"), "no such file"),
        case("folder-for-file", of("images", file_name="."), "a folder"),
        case("device-for-file", of("images", file_name="/dev/zero"), "not a regular file"),
        case("number-for-file", of("images", file_name=3), "expected the image's file"),
        case("half-character-class", of("categories", name="\ud800"), "a character that text does not have"),
        case("NUL-class", of("categories", name="a\0"), "a character that text does not have"),
        case("number-for-class", of("categories", name=3), "expected a text"),
        case("twice", lambda content: content["images"].append(content["images"][0]), "the id stands twice"),
        case("text-id", of("annotations", id="one"), "expected a whole number"),
        case("null-entry", lambda content: content["annotations"].append(None), "expected an object"),
        case("other-image", of("annotations", image_id=99999), "no right image has the id 99999"),
        case("other-category", of("annotations", category_id=99), "no category has the id 99"),
        case("crowd", of("annotations", iscrowd=7), "expected 0 or 1"),
        case("size", of("images", width=99), "the annotations say 99"),
    ]


def data_sets() -> list[Case]:
    """Folders of classes and of label PNGs, and what other commands are given as data."""

    def pairs(name: str, change: Callable[[Path], Any], says: str) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            shutil.copytree(stock.pairs, folder / "pairs")
            change(folder / "pairs")
            return ["train", "--task", "segmentation", "--data", folder / "pairs", "--out", folder / "runs"]

        return Case(f"pairs-{name}", make, says, lists=True)

    def classes(name: str, files: dict[str, bytes], says: str) -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            for file, content in files.items():
                place = folder / "photos" / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content or stock.image.read_bytes())
            (folder / "photos").mkdir(exist_ok=True)
            return ["train", "--data", folder / "photos", "--out", folder / "runs"]

        return Case(f"classes-{name}", make, says, lists=True)

    def check(name: str, says: str, *words: str) -> Case:
        return Case(f"check-{name}", lambda folder, stock: ["check-data", *words], says, lists=True)

    def save(mode: str, color: Any) -> Callable[[Path], Any]:
        return lambda root: Image.new(mode, (53, 37), color).save(root / "labels" / "0.png")

    bad = b"no image"
    return [
        pairs("no-label", lambda root: (root / "labels" / "0.png").unlink(), "no label map of the name 0"),
        pairs("no-image", lambda root: (root / "images" / "0.jpg").unlink(), "no image of the name 0"),
        pairs("colours", save("RGB", "red"), "a picture of mode RGB"),
        pairs(
            "other-size", lambda root: Image.new("L", (3, 3)).save(root / "labels" / "0.png"), "the label map is 3×3"
        ),
        pairs("noise", lambda root: (root / "labels" / "0.png").write_bytes(b"noise"), "not an image"),
        pairs("empty", lambda root: (root / "labels" / "0.png").write_bytes(b""), "the file is empty"),
        pairs("classes-noise", lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe"), "classes.txt"),
        pairs("too-few-classes", lambda root: (root / "classes.txt").write_text("one\ntwo\n"), "is no class"),
        pairs("no-labels-folder", lambda root: shutil.rmtree(root / "labels"), "found no images with label PNGs"),
        classes("empty", {}, "neither class folders nor images"),
        classes("loose", {"a.png": b"", "b.png": b""}, "2 images but no class folders"),
        classes("one", {"cat/a.png": b""}, "only one class folder"),
        classes("no-images", {"cat/a.txt": b"x", "dog/a.txt": b"x"}, ""),
        classes("all-bad", {"cat/a.png": bad, "dog/a.png": bad}, ""),
        classes("one-class-bad", {"cat/a.png": b"", "cat/b.png": b"", "dog/a.png": bad}, "dog"),
        classes("val-of-others", {"train/a/1.png": b"", "train/b/1.png": b"", "val/c/1.png": b""}, "c"),
        classes("val-alone", {"val/a/1.png": b"", "val/b/1.png": b""}, "no train/"),
        check("nowhere", "no such file or folder", "nowhere"),
        check("home", "no such user", "~nobody-here/x"),
        check("long", "File name too long", LONG),
        check("device", "/dev/zero", "/dev/zero"),
        check("empty", "found no COCO annotations", "/proc/self/fdinfo"),
        Case(
            "predict-no-images",
            lambda folder, stock: ["predict", folder, "--run", stock.run],
            "no images in this folder",
        ),
        Case(
            "predict-long-image",
            lambda folder, stock: ["predict", LONG, "--run", stock.run],
            "File name too long",
        ),
        Case(
            "predict-out-below-a-file",
            lambda folder, stock: ["predict", stock.image, "--run", stock.run, "--out", "/etc/passwd/a.csv"],
            "cannot be written",
        ),
        Case(
            "predict-out-long",
            lambda folder, stock: ["predict", stock.image, "--run", stock.run, "--out", LONG],
            "File name too long",
        ),
        Case(
            "predict-out-full",
            lambda folder, stock: ["predict", stock.image, "--run", stock.run, "--out", "/dev/full"],
            "/dev/full: No space left on device; free space on its disk",
        ),
        Case("cost-unknown", lambda *_: ["cost", "resnet5"], "no model 'resnet5'"),
        Case("cost-size", lambda *_: ["cost", "acmix_resnet50", "--size", "0", "1"], "--size must be"),
        Case("cost-two-forms", lambda *_: ["cost", "--csv", "--json"], "give one of"),
        Case("cost-out", lambda *_: ["cost", "conv_resnet50", "--csv", "--out", "/proc/a.csv"], "cannot write"),
        Case(
            "cost-full", lambda *_: ["cost", "conv_resnet50", "--csv", "--out", "/dev/full"], "No space left on device"
        ),
        Case("cost-plot", lambda *_: ["cost", "conv_resnet50", "--plot", "a.png"], "--plot writes an .svg file"),
        Case("cost-hub", lambda *_: ["cost", "hf-hub:a/b"], "no model 'hf-hub:a/b'"),
        Case("list-nothing", lambda *_: ["list", "no-such-model"], "no model or recipe matches"),
        Case("bench-case", lambda *_: ["bench", "op", "no-such-case"], "no-such-case"),
        Case("bench-device", lambda *_: ["bench", "op", "acmix-64@56", "--device", "abacus"], "--device must be"),
        Case("bench-records", lambda folder, _: ["bench", "docs", "--records", folder / "x"], "no folder"),
        Case("bench-noise", _bench_record(b"\xff\xfe"), "is not a benchmark record"),
        Case("bench-text", _bench_record(b"{"), "is not a benchmark record"),
        Case("bench-list", _bench_record(b"[1]"), "is not a benchmark record"),
        Case("bench-deep", _bench_record(b"[" * 100_000), "is not a benchmark record"),
        Case("bench-empty-object", _bench_record(b"{}"), "is not a benchmark record"),
        Case("bench-half", _bench_record(b'{"schema": 1, "results": 3}'), "is not a benchmark record"),
        Case("reproduce-table", lambda *_: ["reproduce", "acmix-table99"], "acmix-table99"),
        Case("reproduce-scale", lambda *_: ["reproduce", "--scale", "huge"], "--scale must be one of"),
        Case("reproduce-out", lambda *_: ["reproduce", "acmix-table6", "--out", "/proc/x"], "cannot write to /proc/x"),
    ]


def _bench_record(content: bytes) -> Make:
    def make(folder: Path, stock: Stock) -> list[Any]:
        (folder / "a.json").write_bytes(content)
        return ["bench", "docs", "--records", folder, "--out", folder]

    return make


def all_cases() -> list[Case]:
    """Return every case."""
    found = [*recipes(), *settings(), *headers(), *weights_files(), *checkpoints(), *damaged_checkpoints()]
    return [*found, *run_folders(), *coco(), *data_sets()]
