"""The ids that COCO annotations have of image files."""

from collections.abc import Sequence
from pathlib import Path

from convattn.data.coco_file import read_coco_file
from convattn.data.coco_layout import COCO_LAYOUT, annotation_files, find_images, image_file, image_folders
from convattn.errors import UserError, user_path
from convattn.tasks.answers import AnswerOptions
from convattn.tasks.inference import own_recipe


def image_ids(annotations: Path, files: Sequence[Path]) -> dict[Path, int]:
    """Return the ids of those files that COCO annotations, a file or a folder with some, list as their images.

    Annotation files are read only where a file lies in a folder that may hold their images.

    Raises:
        UserError: There are no annotations, not in COCO's form, or two files give one id to two of the images.
    """
    path = user_path(annotations)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    wanted = {file.resolve(): file for file in files}
    found: dict[Path, int] = {}
    for source in [path] if path.is_file() else annotation_files(path):
        homes = [folder.resolve() for folder in image_folders(source)]
        if any(file.is_relative_to(home) for file in wanted for home in homes):
            images = read_coco_file(source, "boxes").images
            root = find_images(source, [image.file for image in images])
            places = {(root / (image_file(root, image.file) or image.file)).resolve(): image.id for image in images}
            found |= {wanted[place]: id for place, id in places.items() if place in wanted}
    if len({*found.values()}) < len(found):
        raise UserError(f"{path}: two of the images have one id there, in two files; name one of these files")
    return found


def known_ids(options: AnswerOptions, files: list[Path]) -> tuple[dict[Path, int], str]:
    """Return the ids of images in COCO annotations, the ones given or the run's own, and why there are none."""
    if options.annotations is not None:
        return image_ids(options.annotations, files), ""
    recipe = own_recipe(options.run)
    folder = None if recipe is None else recipe.data.folder
    if folder is None or not Path(folder).exists():
        return {}, ""
    try:
        return image_ids(Path(folder), files), ""
    except UserError as error:
        return {}, f"the images are numbered from 1: {error}\n"
