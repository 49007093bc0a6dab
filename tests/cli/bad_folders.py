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
    predict, val, resume = "predict {image} --run {run}", "val --run {run}", "train --resume {run}"

    def case(name: str, change: Callable[[Path], Any], arguments: str, says: str, run: str = "run") -> Case:
        def make(folder: Path, stock: Stock) -> list[Any]:
            shutil.copytree(getattr(stock, run), folder / "run")
            change(folder / "run")
            places = {"run": folder / "run", "image": stock.image, "photos": stock.photos}
            return [word.format(**places) for word in arguments.split()]

        return Case(f"run-{name}", make, says, lists=name in ("config-no-folder", "other-data"))

    def begun(name: str, change: Callable[[Path], Any], says: str, arguments: str = resume) -> Case:
        return case(name, change, arguments, says, "unfinished")

    def put(name: str, content: bytes) -> Callable[[Path], Any]:
        return lambda run: (run / name).write_bytes(content)

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

    def both(*changes: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda run: [change(run) for change in changes]

    as_is, nobody = both(), replaced("folder: /", "folder: ~nobody-here/")
    network, pretrained = "model: test_resnet", replaced("pretrained: false", "pretrained: true")
    return [
        case("passwd", as_is, "predict {image} --run /etc/passwd", "not a checkpoint"),
        case("passwd-val", as_is, "val --run /etc/passwd", "not a checkpoint"),
        case("null-device", as_is, "predict {image} --run /dev/null", "/dev/null"),
        case("zero-device", as_is, "predict {image} --run /dev/zero", "/dev/zero"),
        case("long", as_is, f"predict {{image}} --run {LONG}", "File name too long"),
        case("long-val", as_is, f"val --run {'x/' * 3000}", "File name too long"),
        case("nowhere", as_is, "val --run nowhere", "no such run or weights"),
        case("empty", lambda run: (shutil.rmtree(run), run.mkdir()), predict, "not a run folder"),
        case("no-weights", gone("weights.safetensors", "checkpoints"), predict, "this run has no weights yet"),
        case("device", as_is, f"{predict} --device abacus", "device 'abacus'"),
        case(
            "weights-is-a-folder",
            folder_for("weights.safetensors"),
            f"{predict}/weights.safetensors",
            "not a run folder",
        ),
        case("config-is-gone", gone("config.yaml"), val, "no run folder with a config.yaml"),
        begun("config-is-a-folder", folder_for("config.yaml"), "is not a run folder"),
        begun("config-is-empty", put("config.yaml", b""), "the key model is missing"),
        begun("config-is-noise", put("config.yaml", b"\xff\xfe\x00"), "cannot be read as a recipe"),
        begun("config-deep", added("about: " + "[" * DEEP + "]" * DEEP), ""),
        case("config-deep-val", put("config.yaml", b"model: " + b"[" * DEEP), val, "nested too deeply"),
        begun("config-unknown", added("\nepoch: 3\n"), "unknown key epoch"),
        begun("config-hub", replaced(network, "model: hf-hub:a/b"), "would open"),
        begun("config-local", replaced(network, "model: local-dir:/etc"), "would open"),
        begun("config-args", replaced("model_args: {}", "model_args: {checkpoint_path: /etc/passwd}"), "would open"),
        begun("config-pretrained", both(pretrained, gone("checkpoints/last.ckpt")), "pretrained: True would open"),
        begun("config-other-model", replaced(network, "model: test_vit"), "test_vit"),
        begun("config-NUL-folder", replaced("folder: /", 'folder: "\\0" #'), "a character that text does not have"),
        begun("config-no-folder", replaced("folder: /", "folder: /nowhere/"), "no such folder"),
        begun("config-home", nobody, "no such user"),
        case("config-home-val", nobody, val, "no such user"),
        begun("classes-others", put("classes.txt", b"a\nb\n"), "was trained on the classes a, b"),
        begun("classes-latin-1", put("classes.txt", b"caf\xe9\n"), "classes.txt"),
        begun("checkpoint-is-a-folder", folder_for("checkpoints/last.ckpt"), "last.ckpt"),
        begun("best-is-gone", both(gone("checkpoints/best.ckpt"), _finish), "best.ckpt"),
        begun("best-is-noise", both(put("checkpoints/best.ckpt", b"x" * 99), _finish), "best.ckpt"),
        begun("metrics-is-a-folder", folder_for("metrics.csv"), "metrics.csv"),
        begun("metrics-is-noise", put("metrics.csv", b"\xff\xfe,\n\0"), "metrics.csv"),
        begun("metrics-other-columns", put("metrics.csv", b"a,b\n1,2\n"), "metrics.csv"),
        begun("another-setting", as_is, "a resumed run keeps its optimizer.lr", f"{resume} optimizer.lr=1"),
        case("other-data", as_is, f"{val} --data nowhere", "nowhere"),
        case("reproduce-passwd", as_is, "reproduce --from /etc/passwd --out {run}/o", "is not a run folder"),
        case("reproduce-other", as_is, "reproduce --from {run} --out {run}/o", "fits no row"),
        begun("reproduce-unfinished", as_is, "is not finished", "reproduce --from {run} --out {run}/o"),
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
