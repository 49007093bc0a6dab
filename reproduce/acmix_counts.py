"""What of ACmix's tables needs no training: parameters, multiply-adds, stages, architectures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from convattn.cost.published import FIGURE_4, NETWORKS, STAGES, Published
from reproduce.dense import dense_cost
from reproduce.entries import Part, Quantity, Row
from reproduce.networks import stage, totals
from reproduce.published import DENSE, MODULES, VARIANTS, PublishedDense

PARAMETERS = Quantity("parameters", "M", "parameters", 2)
MACS = Quantity("multiply-adds", "G", "multiply-adds", 2)
BY_STAGE = (
    Quantity("multiply-adds", "G", "multiply-adds", 3),
    Quantity("multiply-adds by formula", "G", "by formula", 3),
)
SHARE = Quantity("share of the module's multiply-adds", "%", "share", 0)
PARAMETERS_SHARE = Quantity("share of the module's parameters", "%", "share of parameters", 0)
SECONDS = "seconds"

_ACMIX_PARAMETERS = (
    "The authors' own code of ResNet-ACmix has the counted parameters; the paper's figure would need a third of a "
    "million more: with the grouped kernels (81 C an operator) twice, it is met to within 0.05 M."
)
_SAN_MACS = (
    "The paper's count of patchwise attention holds 0.07 to 0.17 G more than all its products: the same gap as in "
    "stage II of the supplement's table 1. What it counts there is not said."
)
_SAN_PARAMETERS = (
    "The supplement's operator adds its fully connected layers and grouped kernels, 0.31 M in SAN-19; the paper's "
    "figures rise by twice as much, as they do for ResNet-ACmix."
)
_SWIN_PARAMETERS = (
    "Swin's paper prints its 28.29 M as 29, and this one goes on from there: the convolution paths add 0.36 M to "
    "Swin-T and 0.74 M to Swin-S, the paper's figures rise by 1."
)
_ADDITIONS = (
    "Table 1's formula holds the additions of the shifted maps, k_c² C hw; the printed figure is that of the products "
    "alone."
)
_ROUNDED_SHARE = "The paper divides the rounded 0.96 and 0.19: 83.5 and 16.5 %; unrounded they are 83.8 and 16.2 %."
_RESNET_MACS = (
    "Products of convolutions and the linear layer alone are 2.34; with the 0.02 G of batch norms and activations, "
    "which many counters add, it prints as 2.4."
)

_WHY: dict[str, dict[str, str]] = {
    "conv_resnet26": {"multiply-adds": _RESNET_MACS},
    "acmix_resnet26": {"parameters": _ACMIX_PARAMETERS},
    "acmix_resnet38": {"parameters": _ACMIX_PARAMETERS},
    "acmix_resnet50": {"parameters": _ACMIX_PARAMETERS},
    "san10": {"multiply-adds": _SAN_MACS},
    "san15": {"multiply-adds": _SAN_MACS},
    "san19": {"multiply-adds": _SAN_MACS},
    "acmix_san15": {"parameters": _SAN_PARAMETERS, "multiply-adds": _SAN_MACS},
    "acmix_san19": {"parameters": _SAN_PARAMETERS, "multiply-adds": _SAN_MACS},
    "pvt_v1_small": {"parameters": "PVT's paper prints 24.5; here it is rounded up."},
    "swin_tiny": {"parameters": _SWIN_PARAMETERS},
    "acmix_swin_tiny": {"parameters": _SWIN_PARAMETERS},
    "acmix_swin_small": {"parameters": _SWIN_PARAMETERS},
    "acmix_pvt_small": {"multiply-adds": "3.950 lies between 3.9 and 4.0: the paper rounds it down."},
    "conv_swin_tiny": {
        "multiply-adds": "The paper gives it Swin-T's 4.5; no network whose 3x3 convolutions make 39 M parameters has "
        "less than 6.08, since every weight of theirs is used at every pixel."
    },
}

_PROJECTION = {
    "multiply-adds": "As the paper counts, what strides is counted at the resolution of its input; with every product "
    "at the resolution of its output it is 221.1 (SASA) and 224.3 (ACmix)."
}
_DENSE_WHY: dict[tuple[str, str], dict[str, str]] = {
    ("semantic_fpn", "acmix_pvt_small"): {"parameters": "28.58 M, the sum of its parts, prints as 29."},
    ("upernet", "acmix_swin_small"): {
        "parameters": "The convolution paths add 0.74 M to Swin-S's 81.26 M: 82.00; the paper prints the same 81 for "
        "both."
    },
    ("retinanet", "pvt_v1_tiny"): {
        "multiply-adds": "1333 pixels are no multiple of PVT's patches: the authors' code leaves the rest out (230.03 "
        "so counted), this one fills the last patch up."
    },
    ("retinanet", "sasa_resnet50"): _PROJECTION,
    ("retinanet", "acmix_resnet50"): _PROJECTION,
}


def table_1() -> Part:
    """Formulas and counts of the three modules by stage, in ResNet-50."""
    printed = "1.850, which prints as 1.8 or 1.9; the supplement has 1.85."
    position = "The weights of the position term, which the paper leaves out (supplement, D)."
    whys = {
        ("Convolution", "I"): {"multiply-adds": printed, "multiply-adds by formula": printed},
        ("Self-attention", "II"): {
            **dict.fromkeys(("parameters", PARAMETERS_SHARE.name), position),
            SHARE.name: _ROUNDED_SHARE,
        },
        ("Convolution", "II"): dict.fromkeys(
            ("multiply-adds", "multiply-adds by formula"),
            "0.1 must be a slip for 0.01: the table itself says 1 % of the module, and the "
            "supplement prints 0.01. Additions, no products.",
        ),
    }
    rows = []
    for row in MODULES:
        published = {"multiply-adds": row.macs, "parameters": row.parameters}
        published |= {"multiply-adds by formula": row.macs, "parameters by formula": row.parameters}
        published |= {SHARE.name: row.share, PARAMETERS_SHARE.name: row.share_of_parameters}
        rows.append(
            Row(
                f"{row.title}, stage {row.stage}: {row.formula}",
                published,
                count=partial(stage, row.model, row.stage),
                why=whys.get((row.title, row.stage), {}),
            )
        )
    parameters = [Quantity(name, "M", name, 3) for name in ("parameters", "parameters by formula")]
    return Part("count", (*BY_STAGE, SHARE, *parameters, PARAMETERS_SHARE), tuple(rows), SECONDS)


def supplement_table_1() -> Part:
    """Multiply-adds by stage of ResNet-50, SAN-19 and Swin-T, without and with ACmix."""
    names = {
        "conv_resnet50": "ResNet 50, convolution",
        "sasa_resnet50": "ResNet 50, self-attention",
        "acmix_resnet50": "ResNet 50, ACmix",
        "san19": "SAN 19, self-attention",
        "acmix_san19": "SAN 19, ACmix",
        "swin_tiny": "Swin-T, self-attention",
        "acmix_swin_tiny": "Swin-T, ACmix",
    }
    rows = []
    for row in STAGES:
        model = row.models[0]
        for number, printed, share in (("I", row.stage_one, row.share_one), ("II", row.stage_two, row.share_two)):
            why = {"": _SAN_MACS} if "san19" in model else {SHARE.name: _ROUNDED_SHARE} if "sasa" in model else {}
            if number == "II" and model in ("acmix_resnet50", "acmix_swin_tiny"):
                why = {"multiply-adds by formula": _ADDITIONS}
            published = {"multiply-adds": printed, "multiply-adds by formula": printed, SHARE.name: share}
            made = partial(stage, model, number)
            rows.append(Row(f"{names[model]}, stage {number}", published, count=made, why=why))
    return Part("count", (*BY_STAGE, SHARE), tuple(rows), SECONDS)


def figure_4() -> Part:
    """Parameters and multiply-adds of the twenty networks."""
    return Part("count", (PARAMETERS, MACS), tuple(_network_row(row, row.title) for row in FIGURE_4), SECONDS)


def _network_row(row: Published, title: str) -> Row:
    figures = {"parameters": row.parameters, "multiply-adds": row.macs}
    return Row(title, figures, count=partial(totals, row.models[0]), why=_WHY.get(row.models[0], {}))


# the network | the one that it is said to equal in accuracy | per cent of its FLOPs
_CLAIMS = """
ResNet-ACmix 26 | acmix_resnet26   | SASA-ResNet 50 | sasa_resnet50                | 80
SAN-ACmix 15    | acmix_san15      | SAN 19         | san19                        | 80
PVT-ACmix-T     | acmix_pvt_tiny   | PVT-L          | pvt_v1_large                 | 40
Swin-ACmix-S    | acmix_swin_small | Swin-B         | swin_base_patch4_window7_224 | 60
"""


def section_5_1() -> Part:
    """The text's claims of how little ACmix takes for the accuracy of a larger network."""
    quantity = Quantity("multiply-adds, of the other's", "%", "ratio", 0)
    whys = {
        "ResNet-ACmix 26": "2.27 of 3.39 G, counted alike: less than the text says.",
        "PVT-ACmix-T": "2.0 of 9.8 G. Figure 4 gives PVT-ACmix-T 78.0 %, and PVT's paper PVT-L 81.7 %; PVT-ACmix-S has "
        "81.7 % too, with 40 % of PVT-L's multiply-adds: the T must be a slip for S.",
    }
    rows = []
    for line in _CLAIMS.strip().splitlines():
        title, model, other, larger, share = (cell.strip() for cell in line.split("|"))
        why = {"": whys.get(title, "The text rounds to tens.")}
        rows.append(Row(f"{title} of {other}", {quantity.name: share}, count=partial(_ratio, model, larger), why=why))
    rows.append(Row("PVT-ACmix-S of PVT-L", count=partial(_ratio, "acmix_pvt_small", "pvt_v1_large")))
    return Part("count", (quantity,), tuple(rows), SECONDS)


def _ratio(model: str, larger: str) -> dict[str, float]:
    return {"ratio": 100 * totals(model)["multiply-adds"] / totals(larger)["multiply-adds"]}


def dense_table(source: str) -> Part:
    """The parameter and FLOP columns of table 2, 3 or 4."""
    chosen = [row for row in DENSE if row.source == source]
    quantities = (PARAMETERS, MACS) if chosen[0].parameters else (MACS,)
    return Part("count", quantities, tuple(map(_dense_row, chosen)), SECONDS)


HEADS = {
    "semantic_fpn": "Semantic FPN",
    "upernet": "UPerNet",
    "retinanet": "RetinaNet",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
}


def _dense_row(row: PublishedDense) -> Row:
    published = {"multiply-adds": row.macs} | ({"parameters": row.parameters} if row.parameters else {})
    return Row(
        f"{HEADS[row.head]}, {row.title}",
        published,
        count=partial(dense_cost, row.head, row.model),
        why=_DENSE_WHY.get((row.head, row.model), {}),
    )


def table_6() -> Part:
    """Parameters and multiply-adds of single paths and the four mixes."""
    rows = []
    for model, label in (
        ("swin_tiny", "Swin-T: attention alone"),
        ("conv_swin_tiny", "Conv-Swin-T: convolution alone"),
    ):
        rows.append(_network_row(next(row for row in NETWORKS if row.models[0] == model), label))
    for row in VARIANTS:
        if row.source == "table 6":
            figures = given({"parameters": row.parameters, "multiply-adds": row.macs})
            rows.append(_variant_row(row.title, row.option, figures, _WHY["acmix_swin_tiny"]))
    return Part("count", (PARAMETERS, MACS), tuple(rows), SECONDS)


def given(figures: Mapping[str, str | None]) -> dict[str, str]:
    """Those of a row's figures that the paper has."""
    return {name: text for name, text in figures.items() if text is not None}


def table_7() -> Part:
    """Multiply-adds of the forms of the shift."""
    full = "The table prints 4.7 where figure 4 and table 6 have 4.6 for the same network: 4.645."
    once = (
        "With {} all heads of a channel have one output, which is computed once and repeated; the paper counts it for "
        "every head."
    )
    whys = {
        "shift=tensor": "Moving tensors needs no products: the grouped convolution's 0.116 G are gone; adding the "
        "moved maps, 0.1 G, is no multiply-add.",
        "shift=fixed": once.format("kernels that stay one-hot"),
        "shift=single-random": once.format("one kernel a group"),
        "shift=random": full,
        "shift=learnable": full,
    }
    rows = tuple(
        _variant_row(row.title, row.option, given({"multiply-adds": row.macs}), {"multiply-adds": whys[row.option]})
        for row in VARIANTS
        if row.source == "table 7"
    )
    return Part("count", BY_STAGE[:1], rows, SECONDS)


def _variant_row(title: str, option: str, published: Mapping[str, str], why: Mapping[str, str]) -> Row:
    name, _, value = option.partition("=")
    made = partial(totals, "acmix_swin_tiny", {"operator_args": {name: value}})
    return Row(title, published, count=made, why=why)
