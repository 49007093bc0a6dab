"""The tables and figures of X-volution."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from convattn.tasks.recipes import load_recipe
from convattn.tasks.starting import network_options
from reproduce.acmix_counts import MACS, PARAMETERS, SECONDS
from reproduce.architectures import RESNET, SHAPE, architecture_rows
from reproduce.budget import digits, scene
from reproduce.entries import Entry, Part, Quantity, Row
from reproduce.networks import totals
from reproduce.propagation import HEIGHTS, Approximation, explained
from reproduce.trained import TrainedRow, full_part, quantities, small_part

TOP = quantities("top1", "top5")
BOX = quantities("box_AP", "box_AP50", "box_AP75", "box_APs", "box_APm", "box_APl")
SIZES = quantities("box_AP", "box_APs", "box_APm", "box_APl")
BOX_AND_MASK = (*SIZES, *quantities("mask_AP", "mask_APs", "mask_APm", "mask_APl"))
FIRST = "coco-faster_rcnn-xvolution-1x"

_INVOLUTION = 'xvolution_resnet50 model_args.operator_args={"attention":"involution"}'
_GLOBAL = 'xvolution_resnet50 model_args.operator_args={"attention":"global"}'
_STAGE_4 = {"model_args.stages": [4]}
# label | key of the recipe's figures | the small network | its options
_OPERATORS: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("Convolution", "conv_resnet50", "conv_resnet18", {}),
    ("Multi-Convolution", "multiconv_resnet50", "multiconv_resnet18", {}),
    ("AA-Convolution", "aa_resnet50", "aa_resnet18", _STAGE_4),
    ("Involution", "involution_resnet50", "involution_resnet18", _STAGE_4),
    ("X-volution (Inv)", _INVOLUTION, "xvolution_resnet18", {"model_args.operator_args": {"attention": "involution"}}),
    ("Self-Attention", "global_resnet50", "global_resnet18", {}),
    ("X-volution (SA)", _GLOBAL, "xvolution_resnet18", {"model_args.operator_args": {"attention": "global"}}),
    ("PSSA", "pssa_resnet50", "pssa_resnet18", {}),
    ("X-volution", "xvolution_resnet50", "xvolution_resnet18", {}),
)
_MULTI = "Multi-Convolution, {} (not in the paper)"
_LAST_CONTROL = (_MULTI.format("stage5"), "multiconv", None)
_CONTROLS: Mapping[int, tuple[tuple[str, str, int | None], ...]] = {
    34: ((_MULTI.format("stage3"), "multiconv", 2), (_MULTI.format("stage4"), "multiconv", 3), _LAST_CONTROL),
    50: (_LAST_CONTROL,),
}
"""X-volution's convolutions without its attention, where X-volution is: whose gain is it? By the network's depth."""


def _table_1() -> Entry:
    trained = []
    for depth, small, options in (
        (34, 34, {"model_args.layers": [1, 1, 1, 1]}),
        (50, 14, {}),
    ):
        for label, kind, stage in (
            ("Convolution", "conv", None),
            ("Self-Attention", "global", None),
            ("PSSA", "pssa", None),
            ("X-volution, stage3", "xvolution", 2),
            ("X-volution, stage4", "xvolution", 3),
            ("X-volution, stage5", "xvolution", None),
            *_CONTROLS[depth],
        ):
            place = {} if stage is None else {"model_args.stages": [stage]}
            key = f"{kind}_resnet{depth}" + ("" if stage is None else f" model_args.stages=[{stage}]")
            made, group = digits(f"{kind}_resnet{small}", {**options, **place}), f"ResNet-{depth}"
            trained.append(TrainedRow(f"{group}, {label}", "imagenet-xvolution", key, made, group, kind == "conv"))
    parts = (small_part("digits", trained, TOP[:1]), small_part("clipart", trained, TOP), full_part(trained, TOP))
    return Entry("xvolution", "table 1", "Operators and stages on ImageNet, ResNet-34 and ResNet-50", parts)


def _operators(recipe: str, head: str, *, without: str = "") -> list[TrainedRow]:
    return [
        TrainedRow(label, recipe, key, scene(head, model, options), baseline=label == "Convolution")
        for label, key, model, options in _OPERATORS
        if label != without
    ]


def _table_2() -> Entry:
    trained = _operators(FIRST, "faster_rcnn")
    parts = (small_part("scenes", trained, BOX), full_part(trained, BOX))
    return Entry("xvolution", "table 2", "Faster R-CNN with nine operators, COCO", parts)


def _table_3() -> Entry:
    trained = _operators("coco-mask_rcnn-xvolution", "mask_rcnn", without="Multi-Convolution")
    parts = (small_part("scenes", trained, BOX_AND_MASK), full_part(trained, BOX_AND_MASK))
    return Entry("xvolution", "table 3", "Mask R-CNN with eight operators, COCO", parts)


_ONE = {"model_args.operator_args.dilated_kernel_size": None}
# the paper's baseline, what stands beside a dilated 5x5, and the two readings of the operator: section 6.1.2, figure 1
_KERNELS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("Convolution", "conv", {}),
    ("Convolutions alone", "multiconv", {}),
    ("X-volution", "xvolution", {}),
    ("X-volution of one convolution", "xvolution", _ONE),
)


def _figure_3a() -> Entry:
    trained = []
    for kernel in (1, 3, 5, 7, 9):
        for label, kind, more in _KERNELS:
            options: dict[str, Any] = dict(more)
            if kernel != 3:
                options |= {"model_args.operator_args.kernel_size": kernel}
                options |= {"model_args.stages": [4]} if kind == "conv" else {}  # as the others, by default
            key = f"{kind}_resnet50" + "".join(f" {name}={json.dumps(value)}" for name, value in options.items())
            small, named = digits(f"{kind}_resnet14", options), f"{label}, {kernel}×{kernel}"
            trained.append(TrainedRow(named, FIRST, key, small, str(kernel), kind == "conv", published={}, x=kernel))
    top1 = quantities("top1")
    parts = (
        small_part("digits", trained, top1, chart="kernel"),
        full_part(trained, quantities("box_AP"), chart="kernel"),
    )
    caption = "Kernel sizes 1 to 9 of the convolution branch (the paper: a curve without numbers)"
    return Entry("xvolution", "figure 3a", caption, parts)


def _figure_3b() -> Entry:
    """The epochs of runs that are rows of table 2."""
    shown = ("Convolution", "PSSA", "X-volution")
    trained = [replace(row, published={}) for row in _operators(FIRST, "faster_rcnn") if row.label in shown]
    columns = quantities("box_AP")
    why = (
        "The figure's caption has the decays after epochs 8 and 11, table 7 after 60k and 80k of 90k steps, which are "
        "epochs 8 and 10.67 of 12: the runs are those of table 2, by table 7."
    )
    parts = (
        small_part("scenes", trained, columns, "epochs", chart="epoch"),
        replace(full_part(trained, columns, "epochs", chart="epoch"), why=why),
    )
    caption = "AP by epoch of convolution, PSSA and X-volution (the paper: a curve without numbers)"
    return Entry("xvolution", "figure 3b", caption, parts)


def _table_4() -> Entry:
    bias = {"model_args.operator_args": {"position": "bias"}}
    trained = []
    for label, kind in (("PSSA", "pssa"), ("X-volution", "xvolution")):
        plain, model = f"{kind}_resnet50", f"{kind}_resnet14"
        placed = f'{plain} model_args.operator_args={{"position":"bias"}}'
        trained.append(TrainedRow(label, FIRST, plain, digits(model), label, baseline=True))
        trained.append(TrainedRow(f"{label} with position bias", FIRST, placed, digits(model, bias), label))
    parts = (small_part("digits", trained, quantities("top1")), full_part(trained, SIZES))
    return Entry("xvolution", "table 4", "Relative position encoding, COCO detection", parts)


def _table_5() -> Entry:
    made = (("ResNet-50", "conv_resnet50"), ("X-volution, stage5", "xvolution_resnet50"))
    rows = []
    for title, model in made:
        rows += architecture_rows(f"{title}|{model}", RESNET, (3, 4, 6, 3))
    for title, model in made:
        options = network_options(load_recipe("imagenet-xvolution", {"model": model}).model_args)
        rows.append(Row(f"{title}, whole", count=partial(totals, model, options)))
    columns = (*SHAPE, PARAMETERS, MACS)
    return Entry("xvolution", "table 5", "Architectures for ImageNet", (Part("count", columns, tuple(rows), SECONDS),))


def _table_6() -> Entry:
    """The digits' lengths are one to six epochs: after four most networks err on a few images."""
    trained = []
    for times in (1, 2, 3, 6):
        for label, kind in (("Convolution", "conv"), ("PSSA", "pssa"), ("X-volution", "xvolution")):
            schedule, small = f"{times}x", digits(f"{kind}_resnet14", epochs=times)
            recipe, key = f"coco-faster_rcnn-xvolution-{schedule}", f"{kind}_resnet50"
            trained.append(TrainedRow(f"{label}, {schedule}", recipe, key, small, schedule, kind == "conv"))
    parts = (small_part("digits", trained, quantities("top1")), full_part(trained, BOX))
    return Entry("xvolution", "table 6", "Four lengths of training, COCO detection", parts)


COCO_IMAGES = 117_266
"""Of train2017, those with an object, crowds aside: Detectron2 leaves out the other 1,021, and so do the recipes."""
# schedule | epochs | steps, first and second milestone in thousands
_SCHEDULES = (("1x", 12, 90, 60, 80), ("2x", 24, 180, 120, 160), ("3x", 36, 270, 210, 250), ("6x", 72, 540, 420, 500))


def _schedule(recipe: str) -> dict[str, float]:
    """Epochs, thousands of steps, and the milestones as the same part of the run."""
    found = load_recipe(recipe)
    steps = found.epochs * COCO_IMAGES / found.batch_size / 1e3
    first, second = (milestone / found.epochs * steps for milestone in found.schedule.milestones)
    return {"epochs": found.epochs, "steps": steps, "first": first, "second": second}


def _table_7() -> Entry:
    why = (
        "An epoch of 117,266 images with objects by 16 has 7,329 steps. Detectron2's 90k steps are 12.28 "
        "epochs; the recipe keeps the epochs and divides the rate at the same parts of the run."
    )
    columns = (
        Quantity("epochs", "", "epochs", 0),
        Quantity("steps", "k", "steps"),
        Quantity("first division", "k", "first"),
        Quantity("second division", "k", "second"),
    )
    rows = tuple(
        Row(
            schedule,
            dict(zip((column.name for column in columns), map(str, published), strict=True)),
            count=partial(_schedule, f"coco-faster_rcnn-xvolution-{schedule}"),
            why={"steps": why, "first division": why, "second division": why},
        )
        for schedule, *published in _SCHEDULES
    )
    part = Part("count", columns, rows, SECONDS)
    return Entry("xvolution", "table 7", "Learning-rate schedules of the four lengths", (part,))


# row | how eq. 2's attention is approximated
_APPROXIMATIONS: tuple[tuple[str, Approximation], ...] = (
    ("The pixel itself", "pixel"),
    ("Sums of values at PSSA's offsets", "static"),
    ("PSSA", "stacked"),
    ("PSSA with its centre and eq. 7's outer sum", "summed"),
    ("The sum over the whole map, no softmax (eq. 3)", "unnormalised"),
)


def _section_3_3() -> Entry:
    """Eq. 7 against eq. 2, which the paper derives and does not measure."""
    columns = tuple(Quantity(f"variance explained by {height}", "%", height) for height in HEIGHTS)
    rows = tuple(Row(label, baseline=kind == "static", fit=partial(explained, kind)) for label, kind in _APPROXIMATIONS)
    part = Part("photos", columns, rows, "1 to 2 min for five seeds")
    return Entry("xvolution", "section 3.3", "How closely PSSA approximates attention over the whole map", (part,))


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "xvolution",
        "figure 1",
        "The operator while training and at inference",
        reason="A drawing: that both forms compute the same is an identity, which tests hold to rounding.",
    ),
    Entry(
        "xvolution",
        "figure 2",
        "The place of the operator in a block",
        reason="A drawing: table 5 lists the network, stage by stage.",
    ),
    _figure_3a(),
    _figure_3b(),
    Entry("xvolution", "figure 4", "The structure of PSSA", reason="A drawing: its equations are the operator's own."),
    _section_3_3(),
    _table_1(),
    *(table() for table in (_table_2, _table_3, _table_4, _table_5, _table_6, _table_7)),
)
