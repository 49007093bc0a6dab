"""Look through a data set before training does: every problem by file and id, and what there is."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.coco import annotation_files, check_coco
from convattn.data.coco_file import Wanted
from convattn.data.folder import Progress, open_folder
from convattn.data.problems import BadData, Problem, errors
from convattn.data.segmentation import check_pairs, find_pair_folders, read_classes
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
    """Check a COCO annotation file, or all that a folder holds: COCO annotations, label PNGs, or class folders.

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
    root = user_path(path)
    if root.is_file():
        return [_check_coco(root, options, progress)]
    if not root.is_dir():
        raise UserError(f"{root}: no such file or folder; name a data folder or a COCO annotation file")
    found = [_check_coco(file, options, progress) for file in annotation_files(root)]
    try:
        find_pair_folders(root)
    except UserError as error:
        if not found:
            found = [_check_classes(root, error, progress)]
    else:
        found.append(_check_pairs(root, options, progress))
    return found


def _check_coco(path: Path, options: CheckOptions, progress: Progress | None) -> Checked:
    name = f"{path} (COCO)"
    try:
        wanted = options.wanted or "masks"
        file, images, problems = check_coco(path, images=options.images, wanted=wanted, progress=progress)
        if options.wanted is None and not file.has_masks:
            file, images, problems = check_coco(path, images=options.images, wanted="boxes", progress=progress)
    except BadData as error:
        return Checked(name, {}, error.problems)
    except UserError as error:
        return Checked(name, {}, [Problem(str(path), None, "", str(error), "")])
    objects = [one for image in images.entries for one in image.objects]
    counts = {
        "images": len(images),
        "objects": len(objects),
        "crowds": sum(one.crowd for one in objects),
        "classes": len(file.categories),
    }
    return Checked(name, counts, problems)


def _check_pairs(root: Path, options: CheckOptions, progress: Progress | None) -> Checked:
    folders = find_pair_folders(root)
    reduce = folders.ade20k if options.reduce_zero_label is None else options.reduce_zero_label
    classes = list(options.classes) if options.classes is not None else read_classes(root)
    train, val, problems = check_pairs(folders, classes, reduce_zero_label=reduce, progress=progress)
    counts = {"training pairs": len(train), "validation pairs": len(val), "classes": train.num_classes}
    if train.num_classes < 2 and len(train) and not errors(problems):
        what = "the labels hold one class only"
        remedy = "give each class a number; 255 means not labelled, so save a mask of two classes as 0 and 1"
        problems.append(Problem(str(root), None, "ids", what, remedy))
    return Checked(f"{root} (label PNGs)", counts, problems)


def _check_classes(root: Path, otherwise: UserError, progress: Progress | None) -> Checked:
    try:
        data = open_folder(root, progress=progress)
    except UserError as error:
        raise UserError(
            f"{root}: found no COCO annotations, no label PNGs and no class folders; as COCO: annotations/*.json; "
            f"as label PNGs: {otherwise}; as classes: {error}"
        ) from error
    counts = {"training images": len(data.train), "validation images": len(data.val), "classes": len(data.classes)}
    problems = [Problem(str(root / one.path), None, "image", one.reason, "mend or remove it") for one in data.skipped]
    return Checked(f"{root} (class folders)", counts, problems)
