"""The tables and figures of ACmix and its supplement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from convattn.cost.published import FIGURE_4, NETWORKS
from reproduce import acmix_counts as counts
from reproduce.architectures import architecture
from reproduce.budget import WINDOW, digits, scene
from reproduce.entries import Entry, Part, Quantity, Row
from reproduce.published import VARIANTS
from reproduce.settings import Setting
from reproduce.trained import TrainedRow, full_part, quantities, small_part

TOP1 = quantities("top1")
AP = quantities("box_AP", "box_AP50", "box_AP75")
MIOU = quantities("mean_iou")
_COST = (Quantity("parameters", "M", "parameters", 3), Quantity("multiply-adds", "M", "multiply-adds"))

# paper's row | recipe | its model | the small model, "" where the digits have one for several | host | is its baseline
_HOSTS = """
ResNet 26       | imagenet-resnet | conv_resnet26   | conv_resnet14   | ResNet | yes
SASA-ResNet     |                 |                 | sasa_resnet14   | ResNet |
ResNet-ACmix 26 | imagenet-resnet | acmix_resnet26  | acmix_resnet14  | ResNet |
SAN 10          | imagenet-san    | san10           | san10           | SAN    | yes
SAN-ACmix 10    | imagenet-san    | acmix_san10     | acmix_san10     | SAN    |
PVT-T           | imagenet-pvt    | pvt_v1_tiny     | pvt_v1_tiny     | PVT    | yes
PVT-ACmix-T     | imagenet-pvt    | acmix_pvt_tiny  | acmix_pvt_tiny  | PVT    |
Swin-T          | imagenet-swin   | swin_tiny       | swin_tiny       | Swin   | yes
Swin-ACmix-T    | imagenet-swin   | acmix_swin_tiny | acmix_swin_tiny | Swin   |
"""


# the points of figure 4a, which has no numbers: those that are known are of the networks' own papers
_COMPARED = (
    *((f"SASA-ResNet {depth}", f"sasa_resnet{depth}") for depth in (26, 38, 50)),
    *((f"LR-Net {depth}", f"lr_resnet{depth}") for depth in (26, 50)),
    ("AA-ResNet 50", "aa_resnet50"),
    ("BoTNet 50", "bot_resnet50"),
)


# plain, made as wide as it takes to have the multiply-adds of ACmix on the clip art; the ResNets have them unasked
_EQUAL_COST: tuple[tuple[str, str, Mapping[str, Any], str, str], ...] = (
    ("SAN 10", "san10", {"model_args.widths": [32, 48, 96, 144, 192]}, "SAN-ACmix 10", "acmix_san10"),
    ("PVT-T", "pvt_v1_tiny", {"model_args.mlp_ratios": [9, 9, 4.5, 4.5]}, "PVT-ACmix-T", "acmix_pvt_tiny"),
    ("Swin-T", "swin_tiny", {"model_args.mlp_ratio": 4.62}, "Swin-ACmix-T", "acmix_swin_tiny"),
)


def _figure_4() -> Entry:
    columns, small = (*TOP1, *_COST), []
    for line in _HOSTS.strip().splitlines():
        label, recipe, key, model, host, base = (cell.strip() for cell in line.split("|"))
        small.append(TrainedRow(label, recipe, key, _small(model), host, base == "yes"))
    done, full = {row.label for row in small}, []
    for row in FIGURE_4:
        model, group = row.models[0], row.title.replace("-ACmix", "")
        recipe = next(f"imagenet-{name}" for name in ("resnet", "san", "pvt", "swin") if name in model)
        deeper = None if row.title in done else _small(model)
        full.append(TrainedRow(row.title, recipe, model, deeper, group, "acmix" not in model))
    for title, model in _COMPARED:
        full.append(TrainedRow(title, "imagenet-resnet", model, group=f"ResNet {model[-2:]}"))
    parts = (
        counts.figure_4(),
        small_part("digits", [*small, *full], columns),
        small_part("clipart", [*small, *_at_equal_cost()], columns),
        full_part(full, TOP1),
    )
    return Entry("acmix", "figure 4", "Is it better at equal cost? Parameters, multiply-adds and accuracy", parts)


def _small(model: str) -> Setting:
    return digits(model, WINDOW if model.startswith("acmix_resnet") else {})


def _at_equal_cost() -> Iterator[TrainedRow]:
    """ACmix beside the plain network of the same depth, made wider until both have as many multiply-adds."""
    for plain, model, wider, mixed, its_model in _EQUAL_COST:
        group = f"{plain}, wider"
        yield TrainedRow(group, "", "", digits(model, wider), group, baseline=True)
        yield TrainedRow(f"{mixed} beside it, at equal multiply-adds", "", "", digits(its_model), group)


def _pairs(*rows: tuple[str, str, str], schedules: Mapping[str, str] | None = None) -> list[TrainedRow]:
    """Heads on a plain backbone and on its ACmix: small where the backbone is, once for several schedules."""
    titles, trained = {row.models[0]: row.title for row in NETWORKS}, list[TrainedRow]()
    for head, recipe, plain in rows:
        schedule = (schedules or {}).get(recipe, "")
        group = f"{head} {schedule or plain}"
        for model in (plain, f"acmix_{plain.replace('v1_', '')}"):
            label = f"{counts.HEADS[head]}{f' {schedule}' if schedule else ''}, {titles[model]}"
            is_small = model.endswith("tiny") and recipe != "coco-retinanet-pvt-3x"
            trained.append(
                TrainedRow(label, recipe, model, scene(head, model) if is_small else None, group, model == plain)
            )
    return trained


def _table_2() -> Entry:
    trained = _pairs(
        ("semantic_fpn", "ade20k-semantic_fpn-pvt", "pvt_v1_tiny"),
        ("semantic_fpn", "ade20k-semantic_fpn-pvt", "pvt_v1_small"),
        ("upernet", "ade20k-upernet-swin", "swin_tiny"),
        ("upernet", "ade20k-upernet-swin", "swin_small"),
    )
    parts = (counts.dense_table("table 2"), small_part("scenes", trained, MIOU), full_part(trained, MIOU))
    return Entry("acmix", "table 2", "Segmentation on ADE20K: Semantic FPN on PVT, UPerNet on Swin", parts)


def _table_3() -> Entry:
    resnet, san, head = "coco-retinanet-resnet", "coco-retinanet-san", "retinanet"
    trained = [
        TrainedRow("ResNet 50", resnet, "conv_resnet50", scene(head, "conv_resnet18"), "ResNet", True),
        TrainedRow("SASA", resnet, "sasa_resnet50", scene(head, "sasa_resnet18"), "ResNet"),
        TrainedRow("ResNet-ACmix", resnet, "acmix_resnet50", scene(head, "acmix_resnet18"), "ResNet"),
        TrainedRow("SAN 19", san, "san19", scene(head, "san10"), "SAN", True),
        TrainedRow("SAN-ACmix", san, "acmix_san19", scene(head, "acmix_san10"), "SAN"),
    ]
    parts = (counts.dense_table("table 3"), small_part("scenes", trained, AP), full_part(trained, AP))
    return Entry("acmix", "table 3", "RetinaNet on ResNet and SAN, COCO", parts)


def _table_4() -> Entry:
    rows = (
        ("retinanet", "coco-retinanet-pvt-1x", "pvt_v1_tiny"),
        ("retinanet", "coco-retinanet-pvt-3x", "pvt_v1_tiny"),
        ("mask_rcnn", "coco-mask_rcnn-swin", "swin_tiny"),
        ("cascade_mask_rcnn", "coco-cascade_mask_rcnn-swin", "swin_tiny"),
    )
    schedules = {recipe: "1x" if recipe.endswith("1x") else "3x" for _, recipe, _ in rows}
    trained = _pairs(*rows, schedules=schedules)
    parts = (counts.dense_table("table 4"), small_part("scenes", trained, AP), full_part(trained, AP))
    return Entry("acmix", "table 4", "Detectors on PVT and Swin, COCO", parts)


def _table_5() -> Entry:
    ratio = (Quantity("throughput", "×", "throughput", 2),)
    why = (
        "Another device and framework (the paper: an Ascend 910 under MindSpore). Which ACmix stands in the table is "
        "not said; its mAP is that of PVT-ACmix-T in table 4, so the second is taken for PVT-ACmix-S."
    )
    rows = (
        Row("PVT-S (50.3 FPS)", {"throughput": "1.0"}, "S", True, subject="retinanet:pvt_v1_small"),
        Row("ACmix beside it (67.7 FPS)", {"throughput": "1.3"}, "S", subject="retinanet:acmix_pvt_tiny"),
        Row("PVT-L (24.3 FPS)", {"throughput": "1.0"}, "L", True, subject="retinanet:pvt_v1_large"),
        Row("ACmix beside it (43.9 FPS)", {"throughput": "1.8"}, "L", subject="retinanet:acmix_pvt_small"),
    )
    speed = Part("speed", ratio, rows, "2 to 5 min", "a quiet machine", why, case={"size": 576, "batch": 1})
    recipe = "coco-retinanet-pvt-3x"
    trained = [
        TrainedRow("PVT-S", recipe, "pvt_v1_small", published={"box_AP": "42.2"}, group="S", baseline=True),
        TrainedRow("ACmix (PVT-ACmix-T)", recipe, "acmix_pvt_tiny", published={"box_AP": "42.0"}, group="S"),
        TrainedRow("PVT-L", recipe, "pvt_v1_large", published={"box_AP": "43.4"}, group="L", baseline=True),
        TrainedRow("ACmix (PVT-ACmix-S)", recipe, "acmix_pvt_small", published={"box_AP": "45.3"}, group="L"),
    ]
    full = replace(
        full_part(trained, quantities("box_AP")),
        why="The table names no schedule: 3x, since ACmix's 42.0 is that of PVT-ACmix-T at 3x in table 4.",
    )
    parts = (speed, full)
    return Entry("acmix", "table 5", "RetinaNet at 3×576×576: PVT against ACmix, speed and AP", parts)


def _table_6() -> Entry:
    trained = [
        TrainedRow("Swin-T: attention alone", "imagenet-swin", "swin_tiny", digits("swin_tiny"), baseline=True),
        TrainedRow("Conv-Swin-T: convolution alone", "imagenet-swin", "conv_swin_tiny", digits("conv_swin_tiny")),
    ]
    trained += _variants("table 6")
    small = (small_part("digits", trained, TOP1), small_part("clipart", trained, TOP1))
    parts = (counts.table_6(), *small, full_part(trained, TOP1))
    return Entry("acmix", "table 6", "How the two paths are combined", parts)


def _variants(source: str) -> list[TrainedRow]:
    """Swin-ACmix-T with an option of its operator, the default written out nowhere: it is then another row's run."""
    trained = []
    for row in VARIANTS:
        if row.source == source:
            name, _, value = row.option.partition("=")
            default = value in ("free", "learnable")
            small = digits("acmix_swin_tiny", {} if default else {f"model_args.operator_args.{name}": value})
            key = "acmix_swin_tiny" + ("" if default else f" model_args.operator_args.{name}={value}")
            base = value == "tensor"
            trained.append(
                TrainedRow(
                    row.title, "imagenet-swin", key, small, published=counts.given({"top1": row.top1}), baseline=base
                )
            )
    return trained


def _table_7() -> Entry:
    first = next(row for row in VARIANTS if row.fps)
    ratio = (Quantity("throughput", "×", "throughput", 2),)
    rows = tuple(
        Row(
            f"{row.title} ({row.fps} FPS)" if row.fps else row.title,
            {"throughput": f"{float(row.fps) / float(first.fps or 1):.2f}"} if row.fps else {},
            baseline=row is first,
            subject=f"acmix_swin_tiny:{row.option}",
        )
        for row in VARIANTS
        if row.source == "table 7"
    )
    why = "Another device (the paper: an RTX 2080 Ti at the largest batch) and other kernels; as trained, not folded."
    speed = Part("speed", ratio, rows, "1 to 2 min", "a quiet machine", why, case={"size": 224, "batch": 8})
    trained = _variants("table 7")
    parts = (counts.table_7(), speed, small_part("digits", trained, TOP1), full_part(trained, TOP1))
    return Entry("acmix", "table 7", "Five forms of the shift in Swin-ACmix-T", parts)


def _figure_5() -> Entry:
    rates = tuple(Quantity(name, "", name, 3) for name in ("|α|", "|β|", "log |α/β|"))
    trained = [
        TrainedRow("SAN-ACmix", "imagenet-san", "acmix_san19", scene("retinanet", "acmix_san10")),
        TrainedRow("Swin-ACmix", "imagenet-swin", "acmix_swin_tiny", scene("mask_rcnn", "acmix_swin_tiny")),
    ]
    parts = (
        small_part("scenes", trained, rates, "rates", chart="depth"),
        full_part(trained, rates, "rates", chart="depth"),
    )
    return Entry(
        "acmix", "figure 5", "|α|, |β| and log |α/β| by depth over parallel runs (the paper: lines alone)", parts
    )


_SUPPLEMENT = {
    "supplement, table 2": "Architectures of ResNet and ResNet-ACmix",
    "supplement, table 3": "Architectures of SAN and SAN-ACmix",
    "supplement, table 4": "Architectures of PVT and PVT-ACmix",
    "supplement, table 5": "Architectures of Swin and Swin-ACmix",
}

ENTRIES: tuple[Entry, ...] = (
    Entry("acmix", "figure 1", "A sketch of ACmix", reason="A drawing: its complexities are those of table 1."),
    Entry(
        "acmix",
        "figure 2",
        "Convolution, self-attention and ACmix in two stages",
        reason="A drawing: the operators compute exactly what it shows, and table 1 has their costs.",
    ),
    Entry(
        "acmix",
        "figure 3",
        "Practical improvements of the shift",
        reason="A drawing: the forms that it shows are compared in table 7.",
    ),
    _figure_4(),
    _figure_5(),
    Entry("acmix", "table 1", "Multiply-adds and parameters of the modules at two stages", (counts.table_1(),)),
    *(table() for table in (_table_2, _table_3, _table_4, _table_5, _table_6, _table_7)),
    Entry(
        "acmix", "section 5.1", "ACmix beside larger networks: shares of their multiply-adds", (counts.section_5_1(),)
    ),
    Entry(
        "acmix",
        "supplement, table 1",
        "Multiply-adds of the modules by stage in ResNet 50, SAN 19 and Swin-T",
        (counts.supplement_table_1(),),
    ),
    *(Entry("acmix", number, caption, (architecture(number),)) for number, caption in _SUPPLEMENT.items()),
)
