"""Fully sharded training (FSDP2): each process keeps a part of every weight, gradient and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer

from convattn.tasks.processes import Shard, whole
from convattn.tasks.shards import write_shards

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 with all processes in one data-parallel group.

    A checkpoint is a file as every other one, with the sharded tensors in a folder beside it, see
    :mod:`convattn.tasks.shards`. Read, it is whole: any strategy and any number of processes goes on from it.
    """

    def setup_environment(self) -> None:
        """Make a mesh of all processes."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether :meth:`load_optimizer_state_dict` is called, which Lightning's own does in ``load_checkpoint``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights, sharded."""
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, sharded, by the numbers of the parameters as without FSDP."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the shards, then, on the main process, the file that names them."""
        path = Path(self.broadcast(str(filepath)))
        with write_shards(path, checkpoint) as rest:
            ParallelStrategy.save_checkpoint(self, rest, path, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint, whole."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of the weights."""
        for name, value in self.lightning_module.state_dict().items():
            value.copy_(_sharded_as(value, checkpoint["state_dict"][name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the optimizer's state."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {
                    name: _sharded_as(parameters[number], value) if isinstance(value, Tensor) and value.ndim else value
                    for name, value in values.items()
                }
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's weights over the processes: those of each block together, then those of the rest."""
    network.to(memory_format=torch.contiguous_format)  # FSDP takes no others
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: the outermost entries of its lists of modules that hold modules themselves.

    An operator's own modules are in no other block than the operator, which reads their weights.

    Example:
        >>> import timm
        >>> len(list(blocks(timm.create_model("resnet18"))))
        8
    """
    for child in network.children():
        if isinstance(network, LISTS) and not isinstance(child, LISTS) and any(child.children()):
            yield child
        else:
            yield from blocks(child)


@torch.no_grad()
def gather(sharded: nn.Module, target: nn.Module) -> None:
    """Copy a sharded network's weights and the main process's buffers to a whole one, in evaluation mode."""
    parts = sharded.state_dict()
    target.to(next(iter(parts.values())).device).eval()
    for name, value in target.state_dict().items():
        value.copy_(whole(parts[name]))
    if Shard.here().world > 1:
        for buffer in target.buffers():
            distributed.broadcast(buffer, 0)


def _sharded_as(like: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor sharded as another one; one of another shape, which some optimizers keep, is replicated."""
    if not isinstance(like, DTensor):
        return value
    placements = like.placements if like.shape == value.shape else [Replicate()] * like.device_mesh.ndim
    return distribute_tensor(value.to(like.device), like.device_mesh, placements, src_data_rank=None)
