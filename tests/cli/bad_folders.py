"""Bad run folders, data sets, and what else commands are given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.cli.bad_input import DEEP, LONG, Case, Make, Stock


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
        Case("bench-case", lambda *_: ["benchmarks", "op", "no-such-case"], "no-such-case"),
        Case("bench-device", lambda *_: ["benchmarks", "op", "acmix-64@56", "--device", "abacus"], "--device must be"),
        Case("bench-records", lambda folder, _: ["benchmarks", "docs", "--records", folder / "x"], "no folder"),
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
        return ["benchmarks", "docs", "--records", folder, "--out", folder]

    return make
