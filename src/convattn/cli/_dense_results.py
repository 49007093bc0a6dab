"""What ``convattn predict`` writes of a detector or a segmenter: pictures, COCO JSON, label PNGs."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from convattn.cli._results_folder import prepare
from convattn.cli._tables import make_console
from convattn.data.names import counted, escaped, write_names
from convattn.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from convattn.data.types import SkippedFile
    from convattn.tasks.dense_inference import FoundObjects, LabelledImage
    from convattn.tasks.inference import LoadedModel

WRITTEN_BY = "found by convattn predict"
"""What an ``annotations.json`` of results says of itself."""

ANNOTATIONS = "annotations.json"

LABELS = "labels"

CLASSES = "classes.txt"
"""Beside label PNGs of results: the classes by id, one a line, as a data folder has them."""

MIN_SCORE = 0.3
"""From which score on objects count where the weights say nothing: they hit nothing on their validation images."""

BEST = "where hits and errors balanced best on the validation images"

SMALL = 256
"""Pictures are drawn on an enlarged copy where the image is smaller than this, so that names have room."""


def known_ids(run: Path, annotations: Path | None, files: list[Path]) -> dict[Path, int]:
    """Return the ids of those images that are in COCO annotations: the ones given, or the run's own."""
    from convattn.tasks.dense_data import image_ids
    from convattn.tasks.inference import run_of
    from convattn.tasks.recipes import read_recipe

    if annotations is not None:
        return image_ids(annotations, files)
    config = run_of(run) / "config.yaml"
    folder = read_recipe(config, trust=True).data.folder if config.is_file() else None
    if folder is None or not Path(folder).exists():
        return {}
    try:
        return image_ids(Path(folder), files)
    except UserError as error:
        print(f"the images are numbered from 1: {error}", file=sys.stderr)
        return {}


def write_results(
    loaded: LoadedModel, files: list[Path], out: Path, *, min_score: float | None, ids: Mapping[Path, int]
) -> list[SkippedFile]:
    """Write the results on each image below ``out`` as they come, a line for each; return the files left out.

    A detector writes ``<image>.png`` with the objects drawn and ``annotations.json``, a COCO file with scores. A
    segmenter writes ``<image>.png`` with the classes drawn and named below, and ``labels/<image>.png``, the class of
    each pixel, by the lines of ``labels/classes.txt``. The results of an earlier call are removed before.

    Args:
        loaded: The detector or segmenter.
        files: The images.
        out: The folder to write to.
        min_score: Weaker objects are left out; None leaves that to the weights.
        ids: The images' ids, where they have some; others get the numbers that follow.

    Raises:
        UserError: ``out`` cannot be written, or holds files that are no earlier results.
    """
    from convattn.data.types import SkippedFile
    from convattn.tasks.dense_inference import find_objects, label_images

    names, least = _names(files), next(one for one in (min_score, loaded.min_score, MIN_SCORE) if one is not None)
    others = count(max(ids.values(), default=0) + 1)
    numbers = [ids[file] if file in ids else next(others) for file in files]
    detects = loaded.task != "segmentation"
    beside = [ANNOTATIONS] if detects else [f"{LABELS}/{name}" for name in (*names, CLASSES)]
    prepare(out, [*names, *beside], files)
    answers: Iterable[Any] = find_objects(loaded, files, min_score=least) if detects else label_images(loaded, files)
    if not detects:
        _write_class_names(out, loaded.classes)
    skipped: list[SkippedFile] = []
    # rich would send printed lines to its own console: right where both are one screen, wrong where stdout is a pipe
    console = make_console(stderr=True)
    both = sys.stdout.isatty()
    progress = Progress(console=console, transient=True, redirect_stdout=both, disable=not console.is_terminal)
    with _coco_file(loaded, out if detects else None) as file, progress as bar:
        task = bar.add_task("images", total=len(files))
        for place, (name, answer) in enumerate(zip(names, answers, strict=True), start=1):
            if isinstance(answer, SkippedFile):
                skipped.append(answer)
            else:
                line = (
                    _write_objects(answer, numbers[place - 1], loaded, out / name, file)
                    if detects
                    else _write_labels(answer, loaded, out, name)
                )
                print(line)
            bar.update(task, completed=place)
    _print_end(out, detects, len(files) - len(skipped))
    if detects:
        origin = "given" if min_score is not None else "the default" if loaded.min_score is None else BEST
        print(f"objects of a score from {least:.2g} on ({origin}; --min-score sets another)", file=sys.stderr)
    return skipped


def _write_objects(
    answer: FoundObjects, number: int, loaded: LoadedModel, path: Path, file: dict[str, list[Any]]
) -> str:
    from convattn.data.masks import decode_mask
    from convattn.report.drawing import class_colors, draw_detections

    width, height = answer.image.size
    masks = None
    if answer.results and "segmentation" in answer.results[0]:
        masks = [decode_mask(one["segmentation"], height, width) for one in answer.results]
    colors = class_colors(len(loaded.classes))
    picture = draw_detections(
        answer.image,
        answer.boxes,
        answer.names,
        answer.scores,
        masks,
        colors=[colors[one["category_id"] - 1] for one in answer.results],
        scale=_scale(answer.image),
    )
    _save(picture, path)
    found_from = _seen_from(Path(answer.file), path.parent)
    file["images"].append({"id": number, "file_name": found_from, "width": width, "height": height})
    for index, one in enumerate(answer.results):
        _, _, box_width, box_height = one["bbox"]
        area = round(box_width * box_height, 2) if masks is None else int(masks[index].sum())
        theirs = {"image_id": number, "category_id": loaded.category_ids[one["category_id"] - 1]}
        file["annotations"].append({"id": len(file["annotations"]) + 1, "iscrowd": 0, "area": area, **one, **theirs})
    counts = Counter(answer.names)
    return f"{answer.file}: " + (", ".join(f"{count} × {name}" for name, count in counts.items()) or "nothing found")


def _write_labels(answer: LabelledImage, loaded: LoadedModel, out: Path, name: str) -> str:
    import numpy as np

    from convattn.data.segmentation import write_label_map
    from convattn.report.drawing import draw_label_map
    from convattn.report.legend import Key, with_legend
    from convattn.report.palette import background_of, class_colors

    counts = np.bincount(answer.labels.ravel(), minlength=len(loaded.classes))
    order = [int(label) for label in counts.argsort()[::-1] if counts[label]]
    parts = [f"{loaded.classes[label]} {counts[label] / counts.sum():.0%}" for label in order]
    background, colors = background_of(loaded.classes), class_colors(len(loaded.classes))
    picture = draw_label_map(
        answer.image, answer.labels, len(loaded.classes), scale=_scale(answer.image), background=background
    )
    keys = [Key(part, None if label == background else colors[label]) for part, label in zip(parts, order, strict=True)]
    _save(with_legend(picture, keys), out / name)
    write_label_map(out / LABELS / name, answer.labels)
    return f"{answer.file}: {', '.join(parts[:5])}" + (f" and {len(order) - 5} more" if len(order) > 5 else "")


def _write_class_names(out: Path, classes: list[str]) -> None:
    (out / LABELS).mkdir(exist_ok=True)
    (out / LABELS / CLASSES).write_text(write_names(classes), encoding="utf-8")


@contextmanager
def _coco_file(loaded: LoadedModel, out: Path | None) -> Iterator[dict[str, list[Any]]]:
    """Write what was found also where the run is broken off."""
    categories = [{"id": id, "name": name} for id, name in zip(loaded.category_ids, loaded.classes, strict=True)]
    content: dict[str, Any] = {"info": {"description": WRITTEN_BY, "model": loaded.name}}
    content |= {"images": [], "annotations": [], "categories": categories}
    try:
        yield content
    finally:
        if out is not None:
            (out / ANNOTATIONS).write_text(escaped(json.dumps(content, ensure_ascii=False)), encoding="utf-8")


def _names(files: list[Path]) -> list[str]:
    """Return a picture's name for each file: its own, with its folders where two are alike."""
    stems = Counter(file.stem for file in files)
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name = file.stem
        if stems[name] > 1:
            name = "_".join(part for part in file.with_suffix("").parts if part not in ("/", "..", "."))
        while f"{name}.png" in taken:
            name += "-2"
        taken.add(f"{name}.png")
        names.append(f"{name}.png")
    return names


def _seen_from(file: Path, folder: Path) -> str:
    """Return an image's path as it is read beside ``annotations.json``, so that the pair can be opened as data."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(file.resolve())


def _scale(image: Image.Image) -> float:
    return max(1.0, min(8, SMALL // max(image.size)))


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error}; free the space, or give another folder with --out"
        ) from error


def _print_end(out: Path, detects: bool, count: int) -> None:
    also = f"{out / ANNOTATIONS} (COCO)" if detects else f"{out / LABELS} (label PNGs)"
    print(f"{counted(count, 'picture')} in {out}, {also}", file=sys.stderr)
