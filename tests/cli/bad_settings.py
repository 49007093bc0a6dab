"""Bad recipe files and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli.bad_input import DEEP, LONG, Case, Stock


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
