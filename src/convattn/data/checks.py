"""Look through a data set before training does: every problem by file and id, and what there is."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.classes import open_classes
from convattn.data.coco import Annotations, DetectionImages, check_coco
from convattn.data.coco import check_parts as check_coco_parts
from convattn.data.coco_file import CocoFile, Wanted
from convattn.data.coco_layout import annotation_files, find_annotations, split_of
from convattn.data.folder import Progress
from convattn.data.formats import Format, coco_parts, format_of, pair_list
from convattn.data.forms import CocoContent
from convattn.data.names import counted, name_some
from convattn.data.problems import BadData, Problem
from convattn.data.remote import data_path, is_url
from convattn.data.segmentation import check_pairs, check_parts
from convattn.errors import UserError, user_path


@dataclass(frozen=True)
class Checked:
    """One part of a data folder: what it is, how much of it is right, and its problems."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class CheckOptions:
    """How a folder is to be understood.

    Args:
        images: The folder of a COCO file's images; None looks through the usual places.
        wanted: Whether annotations need masks; None asks for them where any annotation of the file has one.
        reduce_zero_label: Whether id 0 of label PNGs means "not labelled"; None takes it for ADE20K's folders.
        classes: The classes of label PNGs by id; None reads them from the folder.
    """

    images: str | os.PathLike[str] | None = None
    wanted: Wanted | None = None
    reduce_zero_label: bool | None = None
    classes: tuple[str, ...] | None = None


def check_data(
    path: str | os.PathLike[str], options: CheckOptions | None = None, *, progress: Progress | None = None
) -> list[Checked]:
    """Check a data set of any format that training reads, or all that a folder holds.

    A folder may hold COCO annotations and label PNGs, else class folders.

    Raises:
        UserError: There is no such path, or nothing in it is known as data.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "train.json")
        >>> _ = file.write_text('{"images": [')
        >>> print(*check_data(file)[0].problems)
        /.../train.json: the file: is truncated: it ends at line 1, column 13 (fetch or write the file again)
    """
    options = options or CheckOptions()
    root, form = data_path(path), format_of(path)
    if form is not None:
        return _check_format(form, root, options, progress)
    if root.is_file():
        part, found = _check_coco(root, options, progress)
        if found is not None and split_of(root.parent, root) != "val":
            part.problems.extend(check_coco_parts(found, None)[2])
        return [part]
    if not root.is_dir():
        raise UserError(f"{root}: no such file or folder; name a data folder or a COCO annotation file")
    checked = _check_coco_folder(root, options, progress)
    try:
        pairs = _check_pairs(root, "label PNGs", options, progress)
    except UserError as error:
        return checked or [_check_class_folders(root, error, progress)]
    return [*checked, pairs]


def _check_format(form: Format, root: Path, options: CheckOptions, progress: Progress | None) -> list[Checked]:
    """Check data of a format that is none of COCO, label PNGs and class folders, as every task reads it."""
    checked: list[Checked] = []
    faults: list[UserError] = []
    ways: list[Callable[[], list[Checked]]] = []
    if form.boxes is not None:
        ways.append(lambda: _check_boxes(root, form, options, progress))
    if form.maps is not None:
        ways.append(lambda: [_check_pairs(root, form.name, options, progress)])
    if form.classes is not None:
        ways.append(lambda: [_check_classes(root, form.name, progress)])
    for check in ways:
        try:
            checked += check()
        except BadData as error:
            checked.append(Checked(f"{root} ({form.name})", {}, error.problems))
        except UserError as error:
            faults.append(error)
    if not checked:
        raise faults[-1]
    return checked


def _check_boxes(root: Path, form: Format, options: CheckOptions, progress: Progress | None) -> list[Checked]:
    sources = coco_parts(root)
    looks = {split: _check_coco(sources[split], options, progress, f"{form.name}, {split}") for split in sources}
    train, val = looks["train"][1], looks["val"][1] if "val" in looks else None
    if train is not None and ("val" not in looks or val is not None):
        looks["val" if "val" in looks else "train"][0].problems.extend(check_coco_parts(train, val)[2])
    return [part for part, _ in looks.values()]


def _check_coco_folder(root: Path, options: CheckOptions, progress: Progress | None) -> list[Checked]:
    """Check every annotation file of a folder, and those that training would take against each other."""
    files = annotation_files(root)
    looks = {file: _check_coco(file, options, progress) for file in files}
    checked = [part for part, _ in looks.values()]
    if not files:
        return checked
    try:
        parts = find_annotations(root)
    except UserError as error:
        return [*checked, Checked(f"{root} (COCO)", {}, [_problem(root, error)])]
    train, val = parts["train"], parts.get("val")
    last, found, held_out = looks[val or train][0], looks[train][1], None if val is None else looks[val][1]
    if found is not None and (val is None or held_out is not None):
        last.problems.extend(check_coco_parts(found, held_out)[2])
    return checked


def _check_coco(
    source: Annotations, options: CheckOptions, progress: Progress | None, kind: str = "COCO"
) -> tuple[Checked, tuple[CocoFile, DetectionImages] | None]:
    path = source.path if isinstance(source, CocoContent) else user_path(source)
    name = f"{path} ({kind})"
    try:
        wanted = options.wanted or "masks"
        file, images, problems = check_coco(source, images=options.images, wanted=wanted, progress=progress)
        if options.wanted is None and not file.has_masks:
            file, images, problems = check_coco(source, images=options.images, wanted="boxes", progress=progress)
    except BadData as error:
        return Checked(name, {}, error.problems), None
    except UserError as error:
        return Checked(name, {}, [_problem(path, error)]), None
    objects = [one for image in images.entries for one in image.objects]
    counts = {
        "images": len(images),
        "objects": len(objects),
        "crowds": sum(one.crowd for one in objects),
        "classes": len(file.categories),
    }
    return Checked(name, counts, problems), (file, images)


def _problem(place: Path, error: UserError) -> Problem:
    """Return what an error says of a file or folder, as a problem of it."""
    return Problem(str(place), None, "", str(error).removeprefix(f"{place}: "), "", level="fatal")


def _check_pairs(root: Path, kind: str, options: CheckOptions, progress: Progress | None) -> Checked:
    found = pair_list(root)
    reduce = found.zero_is_unlabelled if options.reduce_zero_label is None else options.reduce_zero_label
    classes = list(options.classes) if options.classes is not None else found.classes
    *parts, problems = check_pairs(found, classes, reduce_zero_label=reduce, progress=progress)
    train, val, more = check_parts(found, *parts)
    counts = {"training pairs": len(train), "validation pairs": len(val), "classes": train.num_classes}
    return Checked(f"{root} ({kind})", counts, [*problems, *more])


def _check_class_folders(root: Path, otherwise: UserError, progress: Progress | None) -> Checked:
    try:
        return _check_classes(root, "class folders", progress)
    except UserError as error:
        raise UserError(
            f"{root}: found no COCO annotations, no label PNGs and no class folders; as COCO: annotations/*.json; "
            f"as label PNGs: {otherwise}; as classes: {error}"
        ) from error


def _check_classes(root: Path, kind: str, progress: Progress | None) -> Checked:
    data = open_classes(root, progress=progress)
    counts = {"training images": len(data.train), "validation images": len(data.val), "classes": len(data.classes)}
    home = root.parent if root.is_file() else root
    problems = [
        Problem(str(home / one.path), None, "image" * (home / one.path).is_file(), one.reason, "mend or remove it")
        for one in data.skipped
    ]
    if is_url(root):
        what = "the images are not opened: training passes over those that it cannot read"
        problems.append(Problem(str(root), None, "", what, "nothing to do", "note"))
    labels = {data.val.label(index) for index in range(len(data.val))}
    unseen = [name for label, name in enumerate(data.classes) if label not in labels]
    if unseen:
        what = f"{counted(len(unseen), 'class')} without an image to validate on: {name_some(unseen)}"
        problems.append(Problem(str(root), None, "", what, "add images: nothing tells how well it is known", "note"))
    return Checked(f"{root} ({kind})", counts, problems)
