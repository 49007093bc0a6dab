"""More of what ACmix's tables publish: a module's stages, detectors and segmenters, Swin-ACmix-T with other options.

Beside :mod:`convattn.cost.published`, from tables 1 to 4, 6 and 7. What the paper calls FLOPs are multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from convattn.cost.published import as_figure, cells_of

# source | module | stage | network here | formula of its FLOPs | FLOPs, G, and % | parameters, M, and %
_MODULES = """
table 1 | Convolution    | I  | conv_resnet50  | k_c² C² hw                                  | 1.9 | 99 | 11.3 | 100
table 1 | Convolution    | II | conv_resnet50  | k_c² C hw                                   | 0.1 | 1  | 0    | 0
table 1 | Self-attention | I  | sasa_resnet50  | 3 C² hw                                     | 1.0 | 83 | 3.8  | 100
table 1 | Self-attention | II | sasa_resnet50  | 2 k_a² C hw                                 | 0.2 | 17 | 0    | 0
table 1 | ACmix          | I  | acmix_resnet50 | 3 C² hw                                     | 1.0 | 73 | 3.8  | 92
table 1 | ACmix          | II | acmix_resnet50 | ((k_c² + 2 k_a²) C + (3 k_c² + k_c⁴) C) hw  | 0.4 | 27 | 0.3  | 8
"""

# source | backbone as the paper calls it | head | its name here | parameters, M, or - | multiply-adds, G
_DENSE = """
table 2 | PVT-T        | semantic_fpn      | pvt_v1_tiny      | 17 | 158
table 2 | PVT-ACmix-T  | semantic_fpn      | acmix_pvt_tiny   | 17 | 160
table 2 | PVT-S        | semantic_fpn      | pvt_v1_small     | 28 | 225
table 2 | PVT-ACmix-S  | semantic_fpn      | acmix_pvt_small  | 29 | 228
table 2 | Swin-T       | upernet           | swin_tiny        | 60 | 945
table 2 | Swin-ACmix-T | upernet           | acmix_swin_tiny  | 60 | 950
table 2 | Swin-S       | upernet           | swin_small       | 81 | 1038
table 2 | Swin-ACmix-S | upernet           | acmix_swin_small | 81 | 1043
table 3 | ResNet 50    | retinanet         | conv_resnet50    | -  | 250
table 3 | SASA         | retinanet         | sasa_resnet50    | -  | 226
table 3 | ResNet-ACmix | retinanet         | acmix_resnet50   | -  | 230
table 3 | SAN 19       | retinanet         | san19            | -  | 229
table 3 | SAN-ACmix    | retinanet         | acmix_san19      | -  | 233
table 4 | PVT-T        | retinanet         | pvt_v1_tiny      | -  | 230
table 4 | PVT-ACmix-T  | retinanet         | acmix_pvt_tiny   | -  | 232
table 4 | Swin-T       | mask_rcnn         | swin_tiny        | -  | 272
table 4 | Swin-ACmix-T | mask_rcnn         | acmix_swin_tiny  | -  | 275
table 4 | Swin-T       | cascade_mask_rcnn | swin_tiny        | -  | 750
table 4 | Swin-ACmix-T | cascade_mask_rcnn | acmix_swin_tiny  | -  | 754
"""

# source | as the paper calls it | an option of Swin-ACmix-T's operator | parameters, M | multiply-adds, G | top-1 | FPS
_VARIANTS = """
table 6 | α = β = 1               | mix=sum         | 30 | 4.6 | 81.5 | -
table 6 | α learned, β = 1        | mix=alpha       | 30 | 4.6 | 81.6 | -
table 6 | α learned, β = 1 − α    | mix=convex      | 30 | 4.6 | 81.5 | -
table 6 | α and β learned         | mix=free        | 30 | 4.6 | 81.9 | -
table 7 | Tensor shifts (3a)      | shift=tensor    | -  | 4.6 | 81.4 | 313
table 7 | Fixed kernel (3c I)     | shift=fixed     | -  | 4.7 | 81.4 | 419
table 7 | Random init (3c II)     | shift=single-random | - | 4.7 | 81.5 | 419
table 7 | Random init (3c III)    | shift=random    | -  | -   | -    | -
table 7 | Group convolution, full | shift=learnable | -  | 4.7 | 81.9 | 419
"""


@dataclass(frozen=True)
class PublishedModule:
    """One module's stage in table 1, summed over a network: its formula, FLOPs in G and parameters in M.

    The FLOPs hold the additions of the shifted maps, ``k_c² C hw``. The shares are parts of the module, in per cent.
    """

    source: str
    title: str
    stage: str
    model: str
    formula: str
    macs: str
    share: str
    parameters: str
    share_of_parameters: str


@dataclass(frozen=True)
class PublishedDense:
    """A detector or segmenter: parameters in M (None where the paper has none), multiply-adds in G.

    For an image of 800x1333 and 80 classes, in table 2 for one of 512x2048 and 150 classes.
    """

    source: str
    title: str
    head: str
    model: str
    parameters: str | None
    macs: str


@dataclass(frozen=True)
class PublishedVariant:
    """Swin-ACmix-T with an option of its operator; None is what the paper does not give."""

    source: str
    title: str
    option: str
    parameters: str | None
    macs: str | None
    top1: str | None
    fps: str | None


def _modules() -> tuple[PublishedModule, ...]:
    return tuple(PublishedModule(*cells) for cells in cells_of(_MODULES, 9))


def _or_none(text: str) -> str | None:
    return None if text == "-" else as_figure(text)


def _dense() -> tuple[PublishedDense, ...]:
    return tuple(
        PublishedDense(source, title, head, model, _or_none(parameters), as_figure(macs))
        for source, title, head, model, parameters, macs in cells_of(_DENSE, 6)
    )


def _variants() -> tuple[PublishedVariant, ...]:
    return tuple(
        PublishedVariant(source, title, option, *map(_or_none, (parameters, macs, top1, fps)))
        for source, title, option, parameters, macs, top1, fps in cells_of(_VARIANTS, 7)
    )


MODULES = _modules()
DENSE = _dense()
VARIANTS = _variants()
