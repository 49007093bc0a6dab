"""The option of every command that runs a trained network."""

from enum import Enum
from typing import Annotated

import typer


class Precision(str, Enum):
    """What a network computes in."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"


PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What the network computes in.")]
