"""What PVT and ViT are built of: transformer blocks, patch embeddings, stages of both, and a classifier over stages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convattn.layers._drop_in import traced_as_one
from convattn.layers.tokens import as_map, as_tokens, pad_to_multiple
from convattn.models._config import Stem
from convattn.models._stages import Maps, StagedClassifier
from convattn.ops._recording import map_size


class Block(nn.Module):
    """A transformer block: attention and a two-layer perceptron, each after a layer norm and with a shortcut.

    Args:
        channels: C.
        attention: ``[B, T, C]`` and ``(H, W)`` -> ``[B, T, C]``.
        mlp_ratio: hidden channels over C.
        drop_path: rate of stochastic depth, in training.

    Example:
        >>> import torch
        >>> from convattn.layers import SpatialReductionAttention
        >>> block = Block(8, SpatialReductionAttention(8, num_heads=2), mlp_ratio=4, drop_path=0.0)
        >>> block(torch.randn(1, 6, 8), (2, 3)).shape
        torch.Size([1, 6, 8])
    """

    def __init__(self, channels: int, attention: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attention
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, T, C]`` and ``(H, W)`` -> ``[B, T, C]``."""
        x = x + self.drop_path1(self.attn(self.norm1(x), size))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Squares of pixels to tokens: a strided convolution and a layer norm.

    A map that the square does not divide is filled up with zeros at the right and at the bottom.

    Args:
        in_chans: C_in.
        channels: C.
        patch_size: side of the square.

    Example:
        >>> import torch
        >>> tokens, size = PatchEmbed(3, 8, 4)(torch.randn(1, 3, 9, 16))
        >>> tokens.shape, size
        (torch.Size([1, 12, 8]), (3, 4))
    """

    def __init__(self, in_chans: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, channels, patch_size, patch_size)
        self.norm: nn.Module = nn.LayerNorm(channels)

    @traced_as_one
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``[B, C_in, H, W]`` -> ``[B, h w, C]`` and ``(h, w)``, h = ceil(H/patch_size).

        Raises:
            ValueError: an input of another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.proj.in_channels or x.shape[2] < 1 or x.shape[3] < 1:
            expected = f"[B, {self.proj.in_channels}, H, W]"
            raise ValueError(f"the images must be {expected} of a pixel at least, got {list(x.shape)}")
        x = self.proj(pad_to_multiple(x, self.patch_size))
        return self.norm(as_tokens(x)), map_size(x)


class Stage(nn.Module):
    """Patch embedding, position embedding and blocks; in the last stage of a classifier a class token too.

    Args:
        patch_embed: what makes the tokens.
        blocks: the transformer blocks.
        grid: height and width of the table of position embeddings, which is interpolated to every other size.
        class_token: ``"first"``: a learned token precedes those of the map; None: none.

    Example:
        >>> import torch
        >>> stage = Stage(PatchEmbed(3, 8, 4), [], grid=(7, 7), class_token="first")
        >>> tokens, size = stage(torch.randn(1, 3, 12, 16))
        >>> tokens.shape, size, stage.pos_embed.shape
        (torch.Size([1, 13, 8]), (3, 4), torch.Size([1, 50, 8]))
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: list[Block],
        *,
        grid: tuple[int, int],
        class_token: Literal["first"] | None = None,
    ) -> None:
        super().__init__()
        channels = patch_embed.proj.out_channels
        self.grid, self.num_prefix_tokens = grid, 1 if class_token else 0
        self.grad_checkpointing = False
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + grid[0] * grid[1], channels))
        self.blocks = nn.ModuleList(blocks)
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``[B, C_in, H, W]`` -> tokens ``[B, p + h w, C]`` and ``(h, w)``."""
        x, size = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position(size).to(x.dtype)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, size, use_reentrant=False)
            else:
                x = block(x, size)
        return x, size

    def position(self, size: tuple[int, int]) -> Tensor:
        """The position embeddings of a map of this size, ``[1, p + H W, C]``: bilinear in the table.

        Interpolated at the table's own size too, which changes nothing: a comparison would tie an exported size.
        """
        prefix, table = self.pos_embed[:, : self.num_prefix_tokens], self.pos_embed[:, self.num_prefix_tokens :]
        table = as_tokens(F.interpolate(as_map(table, self.grid), size=size, mode="bilinear", align_corners=False))
        return torch.cat([prefix, table], 1) if self.num_prefix_tokens else table

    def pixels(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens -> map ``[B, C, H, W]``, the class token left out."""
        return as_map(tokens[:, self.num_prefix_tokens :], size)


def draw_linear(module: nn.Module) -> None:
    """As published; convolutions keep torch's initialisation, ACmix its own."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TokenClassifier(StagedClassifier):
    """A classifier over :class:`Stage`: a layer norm, then the class token or the mean of the tokens.

    A subclass sets ``num_features``, ``global_pool``, ``stages`` and ``feature_info``, then calls ``add_head``.
    """

    classifier = "head"

    def add_head(self, num_classes: int, drop_rate: float) -> None:
        """Add what follows the stages, and draw all linear layers."""
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.make_classifier(num_classes)
        self.apply(draw_linear)

    def run_stages(self, x: Tensor, count: int, taken: Collection[int] = (), *, norm: bool = False) -> Maps:
        """The tokens ``[B, T, C]`` of the last stage that runs, the class token first; the maps are without it."""
        maps: list[Tensor] = []
        tokens, size = self.stages[0](x)
        for i, stage in enumerate(self.stages[:count]):
            if i > 0:
                tokens, size = stage(self.stages[i - 1].pixels(tokens, size))
            normed = self.norm(tokens) if i == len(self.stages) - 1 else tokens
            if i in taken:
                maps.append(stage.pixels(normed if norm else tokens, size))
        return normed, maps

    def pool(self, x: Tensor) -> Tensor:
        """The class token, or the mean of the tokens."""
        return x[:, 0] if self.global_pool == "token" else x.mean(1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, drawn as published.

        Raises:
            ValueError: another pooling than the network was built for.
        """
        super().reset_classifier(num_classes, global_pool)
        draw_linear(self.get_classifier())

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: position, class token, α and β."""
        names = {name for name, _ in self.named_parameters() if name.split(".")[-1] in ("pos_embed", "cls_token")}
        return names | super().no_weight_decay()


def image_size(img_size: int | tuple[int, int] | None, stem: Stem) -> tuple[int, int]:
    """Height and width that the position embeddings are for; by default 224, or 32 with the small stem.

    Example:
        >>> image_size(None, "small"), image_size((32, 64), "imagenet")
        ((32, 32), (32, 64))
    """
    size = img_size or (224 if stem == "imagenet" else 32)
    return (size, size) if isinstance(size, int) else (size[0], size[1])
