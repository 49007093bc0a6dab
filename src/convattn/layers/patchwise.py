"""Patchwise attention: a small network reads all keys of a window at once and writes the weights (ACmix eq. 18)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._base import Factory
from convattn.layers._checks import is_hooked
from convattn.layers.folding import Folds
from convattn.layers.patchwise_forms import Folded, FoldedNetwork, fold
from convattn.layers.vector_attention import VectorAttention, VectorAttention2d, regrouped, weights_network
from convattn.ops import aggregate
from convattn.ops._dispatch import needs_standard_operators, runs_directly, working_set_bytes
from convattn.ops._layout import memory_format_of
from convattn.ops._recording import map_size


class PatchwiseAttention(VectorAttention, Folds):
    r"""Weights for a window from its centre's query and all of its keys together, and a sum of the values by them.

    .. math:: F_{c,i} = \sum_j \gamma\big([q_i,\, [k_a]_{a \in \mathcal{N}(i)}]\big)_{c \bmod C/s,\; j}\; v_{c,j}

    :math:`\gamma` is batch norm, ReLU, a 1x1 convolution to C/s channels, batch norm, ReLU, a 1x1 convolution to K²
    weights for each of these; no softmax, no position. The channels c of one c mod C/s, s of them, share weights.

    In eval mode without gradients the batch norms are folded, the keys of the windows (K² · C/4 channels) gathered for
    some rows at a time and the weights (K² · C/8) made for some heads: same results to rounding. The values are never
    gathered.

    Source: Zhao et al., *Exploring Self-attention for Image Recognition*, CVPR 2020; ACmix, eq. 18.

    Args:
        channels: C of v and of the output.
        query_channels: of q and k; None: C/4, as in the source.
        kernel_size: sides of the window, odd; K² is its area.
        share: s, how many channels share weights; must divide C. None: 8 as in the source, or where 8 does not divide
            C the largest number below that does.
        border: what lies beyond the map; on maps smaller than the window reflection bounces as often as needed.

    Raises:
        ValueError: an even kernel, a share that does not divide the channels; in ``forward``, maps of another shape.

    Example:
        >>> import torch
        >>> path = PatchwiseAttention(16, kernel_size=3)
        >>> q, k, v = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7), torch.randn(2, 16, 5, 7)
        >>> path(q, k, v).shape
        torch.Size([2, 16, 5, 7])
    """

    reparameterized: FoldedNetwork | None

    def _make_network(self, made: Factory) -> None:
        taps, heads = len(self.neighborhood), self.channels // self.share
        self.weights = weights_network(self.query_channels * (taps + 1), heads, heads * taps, made)
        self.reparameterized = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As :class:`VectorAttention`; where nobody can tell, in parts."""
        folded = self._folded(k) if runs_directly(v) else None
        if folded is None:
            return super().attend(q, k, v)
        return self._in_parts(q, k, v, folded)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights γ of every window, ``[B, C/s, K², H, W]``."""
        if self.reparameterized is not None:
            weights = self._folded_weights(q, k, self.reparameterized.parts())
        else:
            weights = self.weights(torch.cat([q, self._unfolded(self.neighborhood.pad(k), *k.shape[-2:])], 1))
        return weights.unflatten(1, (-1, len(self.neighborhood)))

    def _folded_weights(self, q: Tensor, k: Tensor, folded: Folded) -> Tensor:
        """γ of whole maps, ``[B, C/s * K², H, W]``."""
        features = torch.cat([q, *self.neighborhood.views(self.neighborhood.pad(k), *map_size(k))], 1)
        low, high = (bound.to(features.dtype)[:, None, None] for bound in (folded.low, folded.high))
        first, second = (weight[..., None, None] for weight in (folded.weight, folded.second_weight))
        hidden = F.relu(F.conv2d(torch.clamp(features, low, high), first, folded.bias))
        return F.conv2d(hidden, second, folded.second_bias)

    def _unfolded(self, padded: Tensor, height: int, width: int) -> Tensor:
        """The keys of every window beside each other, ``[B, C_qk * K², H, W]``, offset by offset for each channel."""
        if needs_standard_operators():  # torch.onnx's unfold is tied to the size of the example
            return torch.stack(list(self.neighborhood.views(padded, height, width)), 2).flatten(1, 2)
        return F.unfold(padded, self.kernel_size).unflatten(2, (height, width))

    def reparameterize(self) -> None:
        """Fold both batch norms for inference, once: same outputs. In place and for good (timm's convention).

        Raises:
            ValueError: a batch norm without running statistics.
            TypeError: convolutions replaced by something else.

        Example:
            >>> import torch
            >>> _ = torch.manual_seed(0)
            >>> path, x = PatchwiseAttention(8).eval(), torch.randn(1, 8, 9, 9)
            >>> before = path(x[:, :2], x[:, 2:4], x)
            >>> path.reparameterize()
            >>> bool(torch.allclose(path(x[:, :2], x[:, 2:4], x), before, atol=1e-6))
            True
        """
        # the keys may be of a smaller dtype than the parameters, under autocast
        largest = torch.finfo(torch.float16).max
        self._take_form("auto", lambda: FoldedNetwork(fold(self.weights, self.query_channels, largest)), "weights")

    def _folded(self, k: Tensor) -> Folded | None:
        """The folded parameters, where nobody could tell them from the trained ones."""
        if self.reparameterized is not None:
            return self.reparameterized.parts()
        if self.training or self.weights.training or is_hooked(self.weights):
            return None
        if [type(part) for part in self.weights] != [nn.BatchNorm2d, nn.ReLU, nn.Conv2d] * 2:
            return None
        if any(getattr(part, "running_mean", part) is None for part in self.weights):
            return None
        return fold(self.weights, self.query_channels, torch.finfo(k.dtype).max)

    def _windows(self, k: Tensor) -> Tensor:
        """The keys of every window, a view ``[B, H, W, kh, kw, C_qk]`` of a padded copy in channels_last."""
        padded = self.neighborhood.pad(k).permute(0, 2, 3, 1).contiguous()
        windows = padded.unfold(1, self.kernel_size[0], 1).unfold(2, self.kernel_size[1], 1)
        return windows.permute(0, 1, 2, 4, 5, 3)

    def _hidden(self, q: Tensor, windows: Tensor, folded: Folded, out: Tensor | None = None) -> Tensor:
        """The first half of γ, ``[B, H, W, C/s]``; the gathered keys go into ``out``."""
        of_q, shape = self.query_channels, windows.shape[3:]
        low, high, weight = folded.low.to(windows.dtype), folded.high.to(windows.dtype), folded.weight
        queries = torch.clamp(q.permute(0, 2, 3, 1), low[:of_q], high[:of_q])
        keys = torch.clamp(windows, low[of_q:].view(shape), high[of_q:].view(shape), out=out)
        hidden = F.linear(queries, weight[:, :of_q], folded.bias)
        return F.relu(hidden + F.linear(keys.flatten(3), weight[:, of_q:]))

    def _weights_of(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The second half of γ, for the heads that weight and bias have, ``[B, heads, K², H, W]``."""
        batch, height, width, _ = hidden.shape
        pixels = hidden.flatten(1, 2).transpose(1, 2)
        out = torch.baddbmm(bias[:, None], weight.expand(batch, -1, -1), pixels)
        taps = len(self.neighborhood)
        return out.unflatten(2, (height, width)).unflatten(1, (len(bias) // taps, taps))

    def _in_parts(self, q: Tensor, k: Tensor, v: Tensor, folded: Folded) -> Tensor:
        """Keys are gathered for some rows at a time, weights made and used for some heads at a time."""
        hidden = self._hidden_in_bands(q, k, folded)
        heads, taps, budget = self.channels // self.share, len(self.neighborhood), self._budget(v)
        of_head = v.element_size() * taps * v.shape[2] * v.shape[3]
        total: Tensor | None = None
        for images, chosen in _parts(v.shape[0], heads, budget // of_head):
            rows = slice(chosen.start * taps, chosen.stop * taps)
            weights = self._weights_of(hidden[images], folded.second_weight[rows], folded.second_bias[rows])
            values = v.unflatten(1, (self.share, heads))[images, :, chosen].transpose(1, 2).flatten(1, 2)
            out = aggregate(weights, values, self.neighborhood)
            if total is None:
                total = torch.empty_like(v, dtype=out.dtype, memory_format=memory_format_of(v))
            by_head = total.unflatten(1, (self.share, heads))[images, :, chosen]
            by_head.copy_(regrouped(out, chosen.stop - chosen.start, self.share))
        return total if total is not None else torch.empty_like(v)

    def _hidden_in_bands(self, q: Tensor, k: Tensor, folded: Folded) -> Tensor:
        """:meth:`_hidden` of some rows of an image at a time, or of some images."""
        windows, hidden, gathered = self._windows(k), None, None
        of_row = windows[:1, :1].numel() * k.element_size()
        for images, rows in _parts(k.shape[0], k.shape[2], self._budget(k) // max(of_row, 1)):
            part = windows[images, rows]
            gathered = part.new_empty(part.shape) if gathered is None else gathered
            kept = gathered[: part.shape[0], : part.shape[1]]
            found = self._hidden(q[images, :, rows], part, folded, kept)
            if hidden is None:
                hidden = found.new_empty(k.shape[0], *k.shape[2:], found.shape[3])
            hidden[images, rows] = found
        return k.new_empty(0, *k.shape[2:], len(folded.bias)) if hidden is None else hidden

    def _budget(self, x: Tensor) -> int:
        """Half a working set: maps that are read and written lie beside it."""
        return working_set_bytes(x.device) // 2


class PatchwiseAttention2d(VectorAttention2d):
    """Patchwise attention with its projections: the SAM of SAN's blocks, and a drop-in for a convolution of stride 1.

    Args:
        in_channels: C_in.
        out_channels: C; the others are those of :class:`PatchwiseAttention`.

    Example:
        >>> import torch
        >>> PatchwiseAttention2d(64, 16)(torch.randn(2, 64, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    path = PatchwiseAttention


def _parts(batch: int, size: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the images and of an axis of ``size``, of ``at_once`` together: whole images, or some of one."""
    step, images = min(max(at_once, 1), size), max(at_once // size, 1)
    for first in range(0, batch, images):
        for start in range(0, size, step):
            yield slice(first, min(first + images, batch)), slice(start, min(start + step, size))
