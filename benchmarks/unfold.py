"""ACmix as it is usually written, by unfolding: what the tiled operator is measured against.

Every key and value is copied once for each of the k_a² positions of the window, and every copy is kept for backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL, WINDOW = 3, 7
"""k_c and k_a, as the authors have them."""


class UnfoldACmix(nn.Module):
    """The arithmetic of the authors' operator over ``F.unfold`` of reflect-padded maps.

    Parameters carry the authors' names, so that :func:`convattn.load_official` puts its weights into an ACmix. Maps
    must be larger than half the window, as ``F.pad`` reflects once only.

    Args:
        in_channels: C_in.
        out_channels: C.
        num_heads: N.
        stride: distance between outputs.

    Example:
        >>> UnfoldACmix(8, 8)(torch.randn(1, 8, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_heads: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.heads, self.stride = num_heads, stride
        self.head_dim = out_channels // num_heads
        taps = KERNEL**2
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_p = nn.Conv2d(2, self.head_dim, 1)
        self.fc = nn.Conv2d(3 * num_heads, taps, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            self.head_dim * taps, out_channels, KERNEL, stride, KERNEL // 2, groups=self.head_dim, bias=False
        )
        self.rate1, self.rate2 = nn.Parameter(torch.full((1,), 0.5)), nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        return self.rate1 * self._attention(q, k, v) + self.rate2 * self._convolution(q, k, v)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, channels, height, width = q.shape
        position = self._position(height, width, like=q)
        queries = self._at_outputs(self._by_head(q) * self.head_dim**-0.5)
        keys, values = self._neighbours(self._by_head(k)), self._neighbours(self._by_head(v))
        relative = self._at_outputs(position).unsqueeze(2) - self._neighbours(position)
        logits = (queries.unsqueeze(2) * (keys + relative)).sum(1)
        out = (logits.softmax(1).unsqueeze(1) * values).sum(2)
        return out.view(batch, channels, *out.shape[-2:])

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, height, width = q.shape
        pieces = [x.view(batch, self.heads, self.head_dim, height * width) for x in (q, k, v)]
        maps = self.fc(torch.cat(pieces, 1))
        return self.dep_conv(maps.transpose(1, 2).reshape(batch, -1, height, width))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(-1, self.head_dim, *x.shape[-2:])

    def _at_outputs(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride]

    def _neighbours(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, k_a², Ho, Wo]``."""
        padded = F.pad(x, [WINDOW // 2] * 4, mode="reflect")
        size = [(n - 1) // self.stride + 1 for n in x.shape[-2:]]
        return F.unfold(padded, WINDOW, stride=self.stride).view(*x.shape[:2], WINDOW**2, *size)

    def _position(self, height: int, width: int, *, like: Tensor) -> Tensor:
        along_x = torch.linspace(-1.0, 1.0, width, dtype=like.dtype, device=like.device).expand(height, -1)
        along_y = torch.linspace(-1.0, 1.0, height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width)
        return self.conv_p(torch.stack([along_x, along_y]).unsqueeze(0))
