"""The costs that the papers publish of networks for 224x224 images, as they print them.

Sources: Pan et al., *On the Integration of Self-Attention and Convolution*, CVPR 2022 (figure 4 and table 6) and its
supplement (table 1). What they call FLOPs are multiply-adds.
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


def cells_of(text: str, columns: int) -> list[list[str]]:
    """Return the cells of a table of text, whose rows must have that many.

    Raises:
        ValueError: a row has others.
    """
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    for row in rows:
        if len(row) != columns or not all(row):
            raise ValueError(f"a row of published figures must have {columns} cells, got {row}")
    return rows


def as_figure(text: str) -> str:
    """Return a figure as it is printed.

    Raises:
        ValueError: it is no number above 0.
    """
    if not float(text) > 0:
        raise ValueError(f"a published figure must be a number above 0, got {text!r}")
    return text


def _networks() -> tuple[Published, ...]:
    return tuple(
        Published(source, title, tuple(models.split()), as_figure(parameters), as_figure(macs), float(as_figure(top1)))
        for source, title, models, parameters, macs, top1 in cells_of(_NETWORKS, 6)
    )


def _stages() -> tuple[PublishedStages, ...]:
    return tuple(
        PublishedStages(source, tuple(models.split()), *map(as_figure, cells))
        for source, models, *cells in cells_of(_STAGES, 6)
    )


NETWORKS = _networks()
STAGES = _stages()
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
