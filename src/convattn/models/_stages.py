"""What timm asks of a classifier that is built of stages: their maps, its last layer, checkpointing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, TypeAlias

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from convattn.layers.path_mix import no_weight_decay

Maps: TypeAlias = tuple[Tensor, list[Tensor]]


class StagedClassifier(nn.Module):
    """A network of ``stages``, then pooling, dropout and a linear layer.

    A subclass builds ``stages``, ``feature_info``, ``head_drop`` and the linear layer that ``classifier`` names, and
    says what a stage gives (``run_stages``) and what the classifier reads (``pool``).
    """

    classifier: ClassVar[str]
    """Name of the last layer."""
    stem_parameters: ClassVar[str]
    """A pattern of the names of the stem's parameters."""
    block_parameters: ClassVar[tuple[tuple[str, tuple[int, ...] | None], ...]]
    """Patterns of the names of a block's parameters, and where in its stage those of one without a number come."""
    stages: Any
    feature_info: list[dict[str, Any]]
    head_drop: nn.Module
    norm: nn.Module
    num_features: int
    num_classes: int
    global_pool: str

    def run_stages(self, x: Tensor, count: int, taken: Collection[int] = (), *, norm: bool = False) -> Maps:
        """Run the first ``count`` stages on ``[B, in_chans, H, W]``.

        Args:
            x: the images.
            count: how many stages run.
            taken: the stages whose maps are returned.
            norm: the last stage's map is the one after the final norm.

        Returns:
            what the last stage that ran gives, normalised after the network's last, and the maps ``[B, C, h, w]`` of
            those taken.
        """
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """What the last stage gives -> what the classifier reads, ``[B, C]``."""
        raise NotImplementedError

    def make_classifier(self, num_classes: int, like: Tensor | None = None) -> None:
        """Set the last layer: a linear one with the device and dtype of ``like``; of no classes, the identity."""
        self.num_classes = num_classes
        layer = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        setattr(self, self.classifier, layer if like is None else layer.to(like))

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` -> what the last stage gives, normalised."""
        return self.run_stages(x, len(self.stages))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What the last stage gives -> logits ``[B, num_classes]``; with ``pre_logits``, what the classifier reads."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else getattr(self, self.classifier)(x)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` -> logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | Maps:
        """The stages' maps, as timm's feature extraction asks for them.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: which stages; a number: the last so many; None: all.
            norm: return the last stage's map after the final norm; no effect where every stage ends with its own.
            stop_early: leave out the stages after the last one asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the maps alone, else also what ``forward_features`` returns.

        Raises:
            ValueError: another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.stages), indices)
        count = last + 1 if stop_early or intermediates_only else len(self.stages)
        x, maps = self.run_stages(x, count, taken, norm=norm)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take out what the maps of these stages do not need (timm's convention); returns the indices."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if "norm" in self._modules and (prune_norm or last < len(self.stages) - 1):
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0)
        return taken

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute every block again in the backward pass instead of keeping its intermediate results."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return getattr(self, self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer.

        Raises:
            ValueError: another pooling than the network was built for.
        """
        if global_pool not in (None, self.global_pool):
            raise ValueError(f"global_pool must be {self.global_pool!r}, got {global_pool!r}; build the network anew")
        self.make_classifier(num_classes, like=next(self.stages.parameters()))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: every operator's α and β."""
        return no_weight_decay(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups the parameters by depth, for a learning rate that falls with it."""
        return {"stem": self.stem_parameters, "blocks": r"^stages\.(\d+)" if coarse else [*self.block_parameters]}
