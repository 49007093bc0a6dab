"""Run folders as training leaves them, made without training."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class NoiseImages:
    """Labelled images of coloured noise."""

    labels: Sequence[int]
    size: tuple[int, int] = (32, 32)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        if not 0 <= index < len(self.labels):
            raise IndexError(index)
        pixels = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize(self.size, Image.Resampling.BICUBIC)

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"val/picture {index}.png"


def write_csv(path: Path, head: str, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head.split(","))
        writer.writerows(rows)


def make_run(
    folder: Path, classes: Sequence[str], *, epochs: int = 12, layers: int = 6, images: int = 400, hits: float = 0.9
) -> NoiseImages:
    """Write a finished run and return its validation images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    config = f"model: acmix_resnet14\nepochs: {epochs}\ndata:\n  folder: photos/birds\n  image_size: 32\nseed: 0\n"
    (folder / "config.yaml").write_text(config)
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    curve = [math.exp(-4 * epoch / max(epochs, 1)) for epoch in range(epochs)]

    def lr(epoch: int) -> float:
        return 1e-3 * (1 + math.cos(3 * epoch / epochs))

    write_csv(
        folder / "metrics.csv",
        "epoch,step,train_loss,val_loss,val_accuracy,lr,seconds",
        [(i + 1, 50 * i + 50, 2 * c + 0.1, 2.2 * c + 0.2, hits * (1 - c), lr(i), 7.5 * i) for i, c in enumerate(curve)],
    )
    write_csv(
        folder / "paths.csv",
        "epoch,depth,layer,alpha,beta",
        [(i + 1, d, f"layer{1 + d // 2}.{d % 2}.conv2", 1 - 0.05 * d * i / 3, 1 + 0.06 * (d - 2) * i / 3)
         for i in range(epochs) for d in range(layers)],
    )  # fmt: skip
    write_csv(folder / "skipped.csv", "file,reason", [("crow/broken <1>.jpg", "the file is empty")])
    labels = rng.integers(0, len(classes), images)
    other = (labels + rng.choice([1, 1, 2, 3], images)) % len(classes)
    said = np.where(rng.random(images) < hits, labels, other)
    write_csv(
        folder / "predictions.csv",
        "index,name,label,predicted,probability",
        [(i, f"val/picture {i}.png", labels[i], said[i], f"{rng.uniform(0.3, 1):.4f}") for i in range(images)],
    )
    summary = {"finished": True, "accuracy": float((said == labels).mean()), "best_epoch": epochs}
    summary |= {"epochs": epochs, "parameters": 1_234_567, "seconds": 98.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return NoiseImages([int(label) for label in labels])
