"""How ``convattn predict`` fills a folder with the pictures of a detector or a segmenter."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from convattn.cli._results_folder import prepare
from convattn.cli._tables import make_console
from convattn.data.names import counted

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.task import PictureOptions


def write_pictures(
    loaded: LoadedModel, files: list[Path], out: Path, options: PictureOptions, batch_size: int | None
) -> list[SkippedFile]:
    """Write the answers on images below ``out`` as they come, a line for each; return the files left out.

    What else is written, beside ``<image>.png``, is for the model's task to say. The results of an earlier call are
    removed before.

    Raises:
        UserError: ``out`` cannot be written, or holds files that are no earlier results.
    """
    from convattn.tasks.inference import ImageFiles, predict
    from convattn.tasks.task import task_of

    names, images = _names(files), ImageFiles(files)
    pictures = task_of(loaded.recipe).pictures(loaded, files, out, options)
    prepare(out, [*names, *pictures.files(names)], files)
    skipped: list[SkippedFile] = []
    # rich would send printed lines to its own console: right where both are one screen, wrong where stdout is a pipe
    console, both = make_console(stderr=True), sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=both, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=len(files))
        pictures.begin()
        try:
            for answer in predict(loaded, files, batch_size=batch_size):
                if answer.skipped is None:
                    line = pictures.write(names[answer.index], images.image(answer.index), answer)
                    print(f"{files[answer.index]}: {line}")
                else:
                    skipped.append(answer.skipped)
                bar.update(task, completed=answer.index + 1)
        finally:
            pictures.end()
    print(f"{counted(len(files) - len(skipped), 'picture')} in {out}, {out}/{pictures.also}", file=sys.stderr)
    if remark := pictures.remark():
        print(remark, file=sys.stderr)
    return skipped


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
