"""How Lightning writes and reads checkpoints; apart from them, so that inference does not import Lightning."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from convattn.tasks.checkpoints import read_checkpoint, write_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through a temporary file, fsync and rename; read with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; a kill at any moment leaves the former one or this one."""
        path = Path(path)
        path.parent.mkdir(exist_ok=True)  # without parents: a run folder that is gone is not made anew, half empty
        write_bytes(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values only, whatever the caller asks."""
        stored = {name: value for name, value in read_checkpoint(Path(path)).items() if name != "loops"}
        return {"callbacks": {}, **stored}  # without any, Lightning would not tell the recorder
