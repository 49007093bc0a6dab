"""What a training run is made of: the typed settings that a recipe's YAML and the command line fill in."""

from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from pydantic.dataclasses import dataclass

from convattn.data.dense_transforms import DetectionAugmentation, SegmentationAugmentation, Side
from convattn.data.fields import SETTINGS, Flag, Number, Options, Part, Text, Whole, between
from convattn.data.names import Fold, HeldOut
from convattn.data.transforms import Augmentation
from convattn.tasks.names import TaskName

HeadName = Literal[
    "retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "semantic_fpn", "upernet"
]


Stage: TypeAlias = Annotated[Whole, between(0, 1000)]
Places: TypeAlias = Text | Stage | tuple[Text | Stage, ...]
"""Modules of a network: names, globs of names, numbers of stages, one or several."""

MOST_STEPS = 10**9
"""More steps, epochs or images than any run has."""

Deviation: TypeAlias = Annotated[Number, between(0.001, 1)]
Count: TypeAlias = Annotated[Whole, between(1, MOST_STEPS)]
Seed: TypeAlias = Annotated[Whole, between(0, 2**31 - 1)]
Rate: TypeAlias = Annotated[Number, between(0, 1e30)]


@dataclass(frozen=True, config=SETTINGS)
class ScenesConfig:
    """How many of the embedded scenes there are, and their seed."""

    train: Count = 1000
    val: Count = 200
    seed: Seed = 0


@dataclass(frozen=True, config=SETTINGS)
class NetworkConfig:
    """The detector or segmenter that stands on the backbone ``model``.

    ``args`` are options of its function in :mod:`convattn.detection` or :mod:`convattn.segmentation`, such as
    ``{min_size: 800}``.
    """

    head: HeadName | None = None
    args: Options = field(default_factory=dict)


@dataclass(frozen=True, config=SETTINGS)
class ConvertConfig:
    """What becomes of the convolutions of ``model`` once it is made, see :func:`convattn.convert`; no ``to``: nothing.

    ``where`` takes the names of timm's ``model``, whatever stands on it: ``layer4``, a glob, the number of a stage, or
    a list of these; null: all convolutions that can be replaced. ``operator_args`` are options of the operator.
    """

    to: Literal["acmix", "xvolution"] | None = None
    where: Places | None = None
    operator_args: Options = field(default_factory=dict)


@dataclass(frozen=True, config=SETTINGS)
class DataConfig:
    """Where the images come from, a ``folder`` or else an ``embedded`` data set, and how they enter the network.

    ``repeats`` is repeated augmentation: that many copies of an image, each augmented anew, stand side by side in the
    order of an epoch, which then sees that many times fewer images in as many steps. ``bad`` says what becomes of a
    detection or segmentation data set with something wrong in it, ``without_objects`` what becomes of a detector's
    training images that have none. ``reduce_zero_label``: label 0 of a label map means
    "not labelled"; null takes it for folders called as ADE20K's. ``image_size`` is a side of a square, or
    ``[height, width]``. ``crop_pct`` is the side of a classifier's evaluation crop over that of the resized image;
    null: the network's own, and 1 for images up to 64 px. With ``folds``, the part number ``fold`` of so many is held
    out. ``sampling: balanced`` draws the images of an epoch with replacement, each class as often.
    """

    folder: Text | None = None
    embedded: Literal["digits", "scenes"] | None = None
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    bad: Literal["refuse", "skip"] = "refuse"
    without_objects: Literal["keep", "drop"] = "keep"
    reduce_zero_label: Flag | None = None
    val_fraction: Annotated[Number, between(0.01, 0.9)] = 0.2
    folds: Annotated[Whole, between(2, 1000)] | None = None
    fold: Annotated[Whole, between(1, 1000)] = 1
    image_size: Side | tuple[Side, Side] = 224
    mean: tuple[Part, Part, Part] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: Annotated[Number, between(0.05, 1)] | None = None
    workers: Annotated[Whole, between(0, 1000)] | None = None
    repeats: Annotated[Whole, between(1, 1000)] = 1
    sampling: Literal["shuffled", "balanced"] = "shuffled"

    @property
    def held_out(self) -> HeldOut:
        """What is held out of data without validation images."""
        return self.val_fraction if self.folds is None else Fold(self.fold, self.folds)

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The size of the images as the network sees them."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, config=SETTINGS)
class MixConfig:
    """Mixup and CutMix of a batch; an alpha of 0 turns either off."""

    mixup: Annotated[Number, between(0, 1000)] = 0.0
    cutmix: Annotated[Number, between(0, 1000)] = 0.0
    prob: Part = 1.0
    switch_prob: Part = 0.5

    @property
    def on(self) -> bool:
        """Whether any mixing takes place."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True, config=SETTINGS)
class OptimizerConfig:
    """An optimizer from ``timm.optim``; its ``sgd`` is Nesterov's, ``momentum`` is the plain one.

    ``decayed`` says what ``weight_decay`` acts on: ``"matrices"`` spares biases and norms, ``"all"`` does not. Both
    spare what the model's ``no_weight_decay()`` names. ``clip_grad`` is the largest norm of the whole gradient.
    ``layer_decay`` multiplies the learning rate of each layer by that more often the deeper the layer lies below the
    last, as timm groups layers; null: all have the same.
    """

    name: Text = "adamw"
    lr: Rate = 1e-3
    weight_decay: Annotated[Number, between(0, 1000)] = 0.05
    decayed: Literal["matrices", "all"] = "matrices"
    momentum: Annotated[Number, between(0, 0.9999)] = 0.9
    layer_decay: Annotated[Number, between(0.01, 1)] | None = None
    clip_grad: Annotated[Number, between(1e-6)] | None = None


@dataclass(frozen=True, config=SETTINGS)
class ScheduleConfig:
    """The learning rate over the run, set at every step; ``warmup`` is the part of the run in which it rises.

    ``warmup_steps`` gives that in steps instead. ``multistep`` multiplies by ``decay_rate`` after each of the
    ``milestones``, in epochs; ``power`` is that of ``poly``.
    """

    name: Literal["cosine", "poly", "tanh", "constant", "multistep"] = "cosine"
    warmup: Annotated[Number, between(0, 0.9)] = 0.0
    warmup_steps: Annotated[Whole, between(0, MOST_STEPS)] | None = None
    warmup_lr: Rate = 1e-6
    min_lr: Rate = 0.0
    milestones: tuple[Annotated[Number, between(0, MOST_STEPS)], ...] = ()
    decay_rate: Part = 0.1
    power: Annotated[Number, between(0, 100)] = 1.0


@dataclass(frozen=True, config=SETTINGS)
class EvaluationConfig:
    """How a segmenter sees an image that it labels.

    Its shorter side is first brought to ``short_side`` (null keeps it), the longer one to ``max_size`` at most;
    ``sliding`` labels it window by window, ``window`` pixels wide and ``stride`` apart (null: two thirds of that).
    """

    short_side: Side | None = None
    max_size: Side = 2048
    mode: Literal["whole", "sliding"] = "whole"
    window: Side = 512
    stride: Side | None = None


@dataclass(frozen=True, config=SETTINGS)
class EmaConfig:
    """The moving average of the weights, which is what gets evaluated and shipped; no ``decay`` turns it off."""

    decay: Annotated[Number, between(0, 0.999999)] | None = None
    warmup: Flag = True


@dataclass(frozen=True, config=SETTINGS)
class CheckpointConfig:
    """How often ``last.ckpt`` is written inside an epoch; it is always written at an epoch's end."""

    every_seconds: Annotated[Number, between(0)] | None = 30.0
    every_steps: Annotated[Whole, between(1)] | None = None


Strategy: TypeAlias = Literal["auto", "ddp", "fsdp", "ddp_find_unused_parameters_true", "ddp_notebook"]
"""How processes share the work: ``ddp`` gives each a whole network, ``fsdp`` (FSDP2) a part of each weight."""


@dataclass(frozen=True, config=SETTINGS)
class TrainerConfig:
    """What is passed through to Lightning's ``Trainer``; ``loggers`` write the curves beside ``metrics.csv``.

    ``wandb`` and ``mlflow`` obey their own variables, as ``WANDB_MODE=offline`` and ``MLFLOW_TRACKING_URI``.
    """

    accelerator: Text = "auto"
    devices: Annotated[Whole, Field(le=10_000)] | Text = "auto"
    strategy: Strategy = "auto"
    precision: Whole | Text = "32-true"
    num_nodes: Annotated[Whole, between(1, 10_000)] = 1
    sync_batchnorm: Flag = False
    deterministic: Flag = False
    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard",)


@dataclass(frozen=True, config=SETTINGS)
class Recipe:
    """A whole training run; ``batch_size`` is the global batch, whatever the number of devices.

    ``accumulate``: the optimizer steps after that many batches, by their mean gradient, and at an epoch's end.
    ``weights``: a run folder or a weights file to start from, see :mod:`convattn.tasks.starting`.
    ``backbone_weights``: a classifier's, that the backbone of a detector or a segmenter starts from.
    ``weights_match``: ``exact`` refuses pretrained weights and a backbone's that lack tensors of the network or have
    others, its classifier aside; ``partial`` loads those that fit.
    ``freeze``: what of ``model`` is not trained: names or globs as for ``convert.where``; a number: all up to the end
    of that stage. ``norm_images``: on so many training images the batch norms are estimated anew before the first
    epoch; null: 512 where an ACmix starts from a convolution, else 0.
    ``compile``: the network, of a detector its backbone, is compiled by ``torch.compile`` for training.
    ``patience``: the run ends after so many epochs without a better score; null trains all ``epochs``.
    ``class_weights`` weigh a classifier's loss by the class of an image: a number for each class in their order, or
    "balanced" for the inverse of its share of the training images.

    ``per_model`` holds settings for the models whose names match a pattern (``"*swin*"``); all that match apply, in
    the order of the file. Resolving a recipe for its model uses the table up. ``published`` is what the papers give
    for each model, in per cent: the top-1 accuracy, or figures by name such as ``{box_AP: 41.9}``. ``network``,
    ``detection_augment``, ``segmentation_augment`` and ``evaluation`` are those of the other tasks, for which
    ``model`` is the backbone. ``convert`` replaces convolutions of ``model`` by operators.
    """

    model: Text
    task: TaskName = "classification"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    epochs: Count = 100
    batch_size: Annotated[Whole, between(1, 2**20)] = 64
    accumulate: Count = 1
    patience: Count | None = None
    seed: Seed = 0
    label_smoothing: Annotated[Number, between(0, 0.99)] = 0.0
    class_weights: Literal["balanced"] | tuple[Annotated[Number, between(0, 1e6)], ...] | None = None
    memory_format: Literal["channels_last", "contiguous"] = "contiguous"
    compile: Flag = False
    pretrained: Flag = False
    weights: Text | None = None
    backbone_weights: Text | None = None
    weights_match: Literal["exact", "partial"] = "exact"
    model_args: Options = field(default_factory=dict)
    freeze: Places | None = None
    norm_images: Annotated[Whole, between(0, MOST_STEPS)] | None = None
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: Augmentation = field(default_factory=Augmentation)
    detection_augment: DetectionAugmentation = field(default_factory=DetectionAugmentation)
    segmentation_augment: SegmentationAugmentation = field(default_factory=SegmentationAugmentation)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    per_model: dict[str, Options] = field(default_factory=dict)
    about: str = ""
    published: dict[str, Number | dict[str, Number]] = field(default_factory=dict)
