"""Bad weights, checkpoints and run folders."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.cli.bad_input import Case, Stock


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
        case("ids-fewer", damaged + "category_ids must be", category_ids="[1, 2]"),
        case("ids-twice", damaged + "category_ids must be", category_ids="[1, 1, 2]"),
        case("ids-text", damaged + "category_ids must be", category_ids='["a", "b", "c"]'),
        case("min_score-large", damaged + "min_score must be", min_score="30"),
        case("min_score-nan", damaged + "min_score must be", min_score="NaN"),
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
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [one for one in archive.infolist() if one.file_size]
        chosen = members[int(part * len(members))]
        start = chosen.header_offset
        names, extra = struct.unpack("<HH", whole[start + 26 : start + 30])
        return start + 30 + names + extra + int(part * (chosen.file_size - 1))
