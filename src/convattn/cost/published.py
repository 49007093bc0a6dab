"""The costs that the papers publish, as they print them.

Sources: Pan et al., *On the Integration of Self-Attention and Convolution*, CVPR 2022 (figure 4, tables 1 to 4, 6 and
7) and its supplement (table 1). What they call FLOPs are multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass

# source | as the paper calls it | its name here, then timm's | parameters, M | multiply-adds, G | top-1, %
_NETWORKS = """
figure 4 | ResNet 26       | conv_resnet26                             | 13.7 | 2.4 | 73.6
figure 4 | ResNet-ACmix 26 | acmix_resnet26                            | 10.6 | 2.3 | 76.1
figure 4 | ResNet 38       | conv_resnet38                             | 19.6 | 3.2 | 76.0
figure 4 | ResNet-ACmix 38 | acmix_resnet38                            | 14.6 | 2.9 | 77.4
figure 4 | ResNet 50       | conv_resnet50 resnet50                    | 25.6 | 4.1 | 76.9
figure 4 | ResNet-ACmix 50 | acmix_resnet50                            | 18.6 | 3.6 | 77.8
figure 4 | SAN 10          | san10                                     | 11.8 | 1.9 | 77.1
figure 4 | SAN-ACmix 10    | acmix_san10                               | 12.1 | 1.9 | 77.6
figure 4 | SAN 15          | san15                                     | 16.2 | 2.6 | 78.0
figure 4 | SAN-ACmix 15    | acmix_san15                               | 16.6 | 2.7 | 78.4
figure 4 | SAN 19          | san19                                     | 20.5 | 3.3 | 78.2
figure 4 | SAN-ACmix 19    | acmix_san19                               | 21.2 | 3.4 | 78.7
figure 4 | PVT-T           | pvt_v1_tiny                               | 13   | 1.9 | 75.1
figure 4 | PVT-ACmix-T     | acmix_pvt_tiny                            | 13   | 2.0 | 78.0
figure 4 | PVT-S           | pvt_v1_small                              | 25   | 3.8 | 79.8
figure 4 | PVT-ACmix-S     | acmix_pvt_small                           | 25   | 3.9 | 81.7
figure 4 | Swin-T          | swin_tiny swin_tiny_patch4_window7_224    | 29   | 4.5 | 81.3
figure 4 | Swin-ACmix-T    | acmix_swin_tiny                           | 30   | 4.6 | 81.9
figure 4 | Swin-S          | swin_small swin_small_patch4_window7_224  | 50   | 8.7 | 83.0
figure 4 | Swin-ACmix-S    | acmix_swin_small                          | 51   | 9.0 | 83.5
table 6  | Conv-Swin-T     | conv_swin_tiny                            | 39   | 4.5 | 80.5
"""

# source | name here | stage I, G, and % | stage II, G, and %
_STAGES = """
supplement, table 1 | conv_resnet50 resnet50                 | 1.85 | 99 | 0.01 | 1
supplement, table 1 | sasa_resnet50                          | 0.96 | 83 | 0.19 | 17
supplement, table 1 | acmix_resnet50                         | 0.96 | 73 | 0.35 | 27
supplement, table 1 | san19                                  | 1.29 | 64 | 0.72 | 36
supplement, table 1 | acmix_san19                            | 1.29 | 60 | 0.89 | 40
supplement, table 1 | swin_tiny swin_tiny_patch4_window7_224 | 1.04 | 68 | 0.49 | 32
supplement, table 1 | acmix_swin_tiny                        | 1.04 | 62 | 0.64 | 38
"""

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
class Published:
    """One network in a paper.

    Args:
        source: the table.
        title: what the paper calls it.
        models: its names in timm's registry, the first being this library's.
        parameters: in M, as text: the digits that the paper prints.
        macs: in G, for 224x224, likewise.
        top1: accuracy on ImageNet in percent.
    """

    source: str
    title: str
    models: tuple[str, ...]
    parameters: str
    macs: str
    top1: float


@dataclass(frozen=True)
class PublishedStages:
    """Multiply-adds of a network's operators in a paper, in G, for 224x224, and their shares in per cent, as texts."""

    source: str
    models: tuple[str, ...]
    stage_one: str
    share_one: str
    stage_two: str
    share_two: str


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


def _cells(text: str, columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    for row in rows:
        if len(row) != columns or not all(row):
            raise ValueError(f"a row of published figures must have {columns} cells, got {row}")
    return rows


def _number(text: str) -> str:
    if not float(text) > 0:
        raise ValueError(f"a published figure must be a number above 0, got {text!r}")
    return text


def _networks() -> tuple[Published, ...]:
    return tuple(
        Published(source, title, tuple(models.split()), _number(parameters), _number(macs), float(_number(top1)))
        for source, title, models, parameters, macs, top1 in _cells(_NETWORKS, 6)
    )


def _stages() -> tuple[PublishedStages, ...]:
    return tuple(
        PublishedStages(source, tuple(models.split()), *map(_number, cells))
        for source, models, *cells in _cells(_STAGES, 6)
    )


def _modules() -> tuple[PublishedModule, ...]:
    return tuple(PublishedModule(*cells) for cells in _cells(_MODULES, 9))


def _or_none(text: str) -> str | None:
    return None if text == "-" else _number(text)


def _dense() -> tuple[PublishedDense, ...]:
    return tuple(
        PublishedDense(source, title, head, model, _or_none(parameters), _number(macs))
        for source, title, head, model, parameters, macs in _cells(_DENSE, 6)
    )


def _variants() -> tuple[PublishedVariant, ...]:
    return tuple(
        PublishedVariant(source, title, option, *map(_or_none, (parameters, macs, top1, fps)))
        for source, title, option, parameters, macs, top1, fps in _cells(_VARIANTS, 7)
    )


NETWORKS = _networks()
STAGES = _stages()
MODULES = _modules()
DENSE = _dense()
VARIANTS = _variants()
FIGURE_4 = tuple(row for row in NETWORKS if row.source == "figure 4")


def find_network(model: str) -> Published | None:
    """What a paper says of a network, or None.

    Example:
        >>> find_network("acmix_resnet50").parameters
        '18.6'
    """
    return next((row for row in NETWORKS if model in row.models), None)


def find_stages(model: str) -> PublishedStages | None:
    """What the supplement says of a network's stages, or None.

    Example:
        >>> find_stages("acmix_resnet50").stage_two
        '0.35'
    """
    return next((row for row in STAGES if model in row.models), None)
