"""A run, or a network by its name, as a file for another runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, resolve_data_config
from torch import Tensor
from torch.nn import functional

from convattn.data.folder import list_images
from convattn.data.images import ImageError
from convattn.errors import UserError
from convattn.export import FORMATS, ExportReport, export
from convattn.export.report import OnnxOptions, Precision, Sizes
from convattn.tasks.building import build_model, check_backbone, with_statistics
from convattn.tasks.checkpoints import describe
from convattn.tasks.config import DataConfig, Recipe
from convattn.tasks.described import Description
from convattn.tasks.inference import LoadedModel, evaluate, load_model, own_recipe
from convattn.tasks.inputs import Input, Inputs
from convattn.tasks.task import task_of

CALIBRATION_IMAGES = 128
EXAMPLES = 2


@dataclass(frozen=True)
class ExportOptions:
    """What ``convattn export`` is asked for.

    Args:
        to: the format, a key of :data:`convattn.export.FORMATS`.
        precision: of the file's arithmetic.
        size: height and width of the images; None: as the run was trained.
        sizes: see :func:`convattn.export`.
        onnx: see :func:`convattn.export`.
        out: the file; None: beside the run.
        data: images to compare on, and to calibrate int8 with; None: the run's own.
        trust: whether the weights may name a network that opens other files.
    """

    to: str = "onnx"
    precision: Precision = "float32"
    size: tuple[int, int] | None = None
    sizes: Sizes | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    out: Path | None = None
    data: Path | None = None
    trust: bool = False


@dataclass(frozen=True)
class Exported:
    """An export of a run or a network.

    Args:
        report: of the file.
        images: what the comparison was made on, for people.
        score: the name of the figure that ``before`` and ``after`` give: the run's and the file's, in int8 alone.
        before: of the run.
        after: of the file.
    """

    report: ExportReport
    images: str
    score: str = ""
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class _Source:
    """Images to take: their data set, and where they come from."""

    images: Any
    calibration: Any
    name: str


def export_run(run: str | Path, options: ExportOptions) -> Exported:
    """Export a run folder, a weights file, or a fresh network of timm's registry.

    Raises:
        UserError: see :func:`convattn.export`; also where no image can be read.
    """
    path = Path(run)
    if options.to not in FORMATS:
        raise UserError(f"--to must be one of {', '.join(FORMATS)}, got {options.to!r}")
    named = not path.exists() and timm.is_model(str(run))
    loaded = network_by_name(str(run)) if named else load_model(path, device="cpu", trust=options.trust)
    if not named and loaded.source.suffix != ".safetensors" and loaded.source.suffix != ".ckpt":
        raise UserError(f"{loaded.source}: this is an exported file; give the run folder that it was made of")
    loaded = _at_size(loaded, options.size)
    source = _source(None if named else path, loaded, options.data)
    file = options.out or _default_file(path, loaded, named, FORMATS[options.to].suffix)
    if file.suffix != FORMATS[options.to].suffix:
        raise UserError(f"{file}: a file for {options.to} ends with {FORMATS[options.to].suffix}; give it that name")
    report = export(
        loaded.model,
        file,
        _examples(loaded, source, options.size),
        precision=options.precision,
        sizes=_sizes(loaded, options),
        onnx=options.onnx,
        metadata=loaded.description,
        calibration=_calibration(loaded, source, options.size) if options.precision == "int8" else (),
    )
    if options.precision != "int8" or source is None or options.data is not None:
        return Exported(report, "noise" if source is None else source.name)
    (name, before), (_, after) = (_score(one, source.images) for one in (loaded, load_model(file)))
    return Exported(report, source.name, name, before, after)


def network_by_name(name: str, *, pretrained: bool = False) -> LoadedModel:
    """A network of timm's registry with ImageNet's classes, and fresh or pretrained weights."""
    recipe = Recipe(model=name, pretrained=pretrained)
    check_backbone(recipe)
    settings = resolve_data_config(timm.get_pretrained_cfg(name).to_dict() if timm.get_pretrained_cfg(name) else {})
    info = ImageNetInfo()
    classes = [info.index_to_description(index) for index in range(info.num_classes())]
    recipe = with_statistics(replace(recipe, data=DataConfig(image_size=tuple(settings["input_size"][1:]))), settings)
    description = describe(recipe, classes)
    fields = Description.parse(description, Path(name))
    model = build_model(recipe, len(classes)).eval()
    return LoadedModel.of(model, description, fields, Path(name), torch.device("cpu"))


def _at_size(loaded: LoadedModel, size: tuple[int, int] | None) -> LoadedModel:
    """The same classifier for images of another size, which its file then says."""
    if size is None or task_of(loaded.recipe).image_sizes == "any":
        return loaded
    description = {**loaded.description, "input_size": f"[3, {size[0]}, {size[1]}]"}
    fields = Description.parse(description, loaded.source)
    return replace(loaded, description=description, transform=fields.transform(), input_size=fields.input_size)


def _sizes(loaded: LoadedModel, options: ExportOptions) -> Sizes | None:
    """Detectors and segmenters see images of every size, so their files take them, except where the format cannot."""
    if options.sizes is not None or options.to == "coreml":
        return options.sizes
    return "image" if task_of(loaded.recipe).takes_any_size(loaded.recipe) else None


def _default_file(path: Path, loaded: LoadedModel, named: bool, suffix: str) -> Path:
    if named:
        return Path(f"{path.name}{suffix}")
    return (path if path.is_dir() else loaded.source.parent) / f"model{suffix}"


def _source(run: Path | None, loaded: LoadedModel, data: Path | None) -> _Source | None:
    """The images of a folder, or the run's own; None where there are none."""
    if data is not None:
        if not data.is_dir():
            raise UserError(f"{data}: no such folder; give --data a folder of images")
        found = Inputs([Input(data / name, name) for name in list_images(data)])
        return _Source(found, found, str(data))
    recipe = own_recipe(run, {"data.bad": "skip"}) if run is not None else None
    if recipe is None:
        return None
    try:
        opened = task_of(recipe).open_data(recipe)
    except UserError as error:
        raise UserError(f"{error} (the export is compared on the run's images; others: --data FOLDER)") from error
    return _Source(opened.val, opened.train, "the run's validation images")


def _tensors(loaded: LoadedModel, images: Any, count: int) -> Iterator[Tensor]:
    """Some images, spread over all of them, each ``[1, 3, H, W]`` as the network's file takes it; bad ones are left."""
    step = max(1, len(images) // count)
    for index in range(0, len(images), step):
        try:
            image = loaded.transform(images.image(index))[None]
            yield task_of(loaded.recipe).as_seen(loaded.model, loaded.recipe, image)
        except ImageError:
            continue


def _examples(loaded: LoadedModel, source: _Source | None, size: tuple[int, int] | None) -> Tensor:
    """A batch of images, all of the size of the first."""
    if source is None:
        height, width = size or loaded.input_size[1:]
        return torch.rand(EXAMPLES, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = _same_size(loaded, source.images, EXAMPLES, size)
    if not found:
        raise UserError(f"{source.name}: none of the images can be read; give a folder of others with --data")
    return torch.cat(found)


def _calibration(loaded: LoadedModel, source: _Source | None, size: tuple[int, int] | None) -> list[Tensor]:
    if source is None:
        raise UserError("--int8 is calibrated on images: give a folder of them with --data")
    found = _same_size(loaded, source.calibration, CALIBRATION_IMAGES, size)
    if not found:
        raise UserError(f"{source.name}: none can be read to calibrate with; give a folder of others with --data")
    return found


def _same_size(loaded: LoadedModel, images: Any, count: int, size: tuple[int, int] | None) -> list[Tensor]:
    found: list[Tensor] = []
    for image in _tensors(loaded, images, count):
        wanted = size or (found[0].shape[2:] if found else image.shape[2:])
        found.append(
            image
            if image.shape[2:] == tuple(wanted)
            else functional.interpolate(image, tuple(wanted), mode="bilinear", antialias=True)
        )
        if len(found) == count:
            break
    return found


def _score(loaded: LoadedModel, images: Any) -> tuple[str, float]:
    """The figure that says how good a model is on annotated images."""
    return task_of(loaded.recipe).main_score(evaluate(loaded, images))
