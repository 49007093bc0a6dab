"""How ``convattn predict`` fills a folder with the pictures and videos of a detector or a segmenter."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from convattn.cli._results_folder import prepare
from convattn.cli._tables import make_console
from convattn.data.names import counted
from convattn.data.video import Video, VideoWriter
from convattn.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from convattn.data.types import SkippedFile
    from convattn.tasks.answers import AnswerOptions
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.inputs import Input, Inputs


def write_pictures(
    loaded: LoadedModel, inputs: Inputs, out: Path, options: AnswerOptions, batch_size: int | None
) -> list[SkippedFile]:
    """Write the answers on images below ``out`` as they come, a line for each; return the files left out.

    The frames of a video become a video. What else is written, beside ``<image>.png``, is for the model's task to
    say. The results of an earlier call are removed before.

    Raises:
        UserError: ``out`` cannot be written, or holds files that are no earlier results.
    """
    from convattn.tasks.inference import predict
    from convattn.tasks.task import task_of

    places = [one.place for one in inputs.entries]
    names = [f"{name}.png" for name in unique_names(inputs)]
    pictures = task_of(loaded.recipe).pictures(loaded, places, out, options)
    files = _Files(out, inputs, names)
    prepare(out, [*files.written, *pictures.files(names)], [one.path for one in inputs.entries])
    skipped: list[SkippedFile] = []
    # rich would send printed lines to its own console: right where both are one screen, wrong where stdout is a pipe
    console, both = make_console(stderr=True), sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=both, disable=not console.is_terminal) as bar, files:
        task = bar.add_task("images", total=len(inputs))
        pictures.begin()
        try:
            for answer in predict(loaded, inputs, batch_size=batch_size):
                if answer.skipped is None:
                    picture, line = pictures.draw(names[answer.index], inputs.image(answer.index), answer)
                    files.add(answer.index, picture)
                    print(f"{inputs.name(answer.index)}: {line}")
                else:
                    skipped.append(answer.skipped)
                bar.update(task, completed=answer.index + 1)
        finally:
            pictures.end()
    told = counted(len(files.written), "file") if files.videos else counted(len(inputs) - len(skipped), "picture")
    print(f"{told} in {out}, {out}/{pictures.also}", file=sys.stderr)
    if remark := pictures.remark():
        print(remark, file=sys.stderr)
    return skipped


class _Files(ExitStack):
    """The pictures of images, and a video of the pictures of each video's frames."""

    def __init__(self, out: Path, inputs: Inputs, names: list[str]) -> None:
        super().__init__()
        self.out, self.inputs, self.names = out, inputs, names
        self.videos: dict[Video, str] = {}
        taken = {name for name, one in zip(names, inputs.entries, strict=True) if one.video is None}
        for one in inputs.entries:
            if one.video is not None and one.video not in self.videos:
                stem = one.path.stem
                while f"{stem}.mp4" in taken:
                    stem += "-2"
                taken.add(f"{stem}.mp4")
                self.videos[one.video] = f"{stem}.mp4"
        self.written = sorted(taken)
        self._writer: tuple[Video, VideoWriter] | None = None

    def add(self, index: int, picture: Image.Image) -> None:
        """Write the picture of an image, or add it to its video."""
        one: Input = self.inputs.entries[index]
        path = self.out / (self.names[index] if one.video is None else self.videos[one.video])
        try:
            if one.video is None:
                picture.save(path)
            else:
                self._video(one.video, path).add(picture)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error}; free the space, or give another folder with --out"
            ) from error

    def _video(self, video: Video, path: Path) -> VideoWriter:
        if self._writer is None or self._writer[0] is not video:
            self.close()
            self._writer = video, self.enter_context(VideoWriter(path, video.rate))
        return self._writer[1]


def unique_names(inputs: Inputs) -> list[str]:
    """Return a name for what is written of each image: its own, with its folders where two are alike."""
    stems = Counter(one.stem for one in inputs.entries)
    names: list[str] = []
    taken: set[str] = set()
    for one in inputs.entries:
        name = one.stem
        if stems[name] > 1:
            parts = [*one.path.parent.parts, one.stem]
            name = "_".join(part for part in parts if part not in ("/", "..", "."))
        while name in taken:
            name += "-2"
        taken.add(name)
        names.append(name)
    return names
