"""The convolution branches of X-volution."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor, nn

from convattn.layers._base import Factory
from convattn.layers._checks import check_odd
from convattn.layers._drop_in import DropIn, Padding, takes_maps
from convattn.layers.folding import Folds
from convattn.layers.static_convolution import STATIC_FORMS, StaticBranch, StaticFormChoice, fold_static, static_branch
from convattn.layers.xvolution_forms import ReparameterizedXVolution
from convattn.ops.neighborhood import IntPair, same_padding

DILATED_KERNEL, DILATED_STEP = 5, 2


class MultiConvolution(DropIn, Folds):
    r"""The convolution branches of :class:`XVolution` alone (Multi-Convolution in table 2).

    .. math:: y = \mathrm{BN}(W_k * x) + \mathrm{BN}(W_5 * x)

    ``convolution``, k by k, and ``dilated``, 5 by 5 with taps twice as far apart, each followed by a batch norm of its
    own (``convolution_norm``, ``dilated_norm``). Section 6.1.2 has both; figure 1 and eq. 8 have one convolution with
    one batch norm, which is ``dilated_kernel_size=None``.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: k, odd; figure 3a goes from 1 to 9. The dilated branch stays 5 by 5 whatever k is, as the paper
            varies one kernel and names the other once.
        stride: distance between outputs.
        padding: None, ``"same"`` or ``dilation * (kernel_size // 2)``, which keep the size of the map.
        dilation: distance between the taps of ``convolution``; those of ``dilated`` lie twice as far apart.
        groups: 1.
        bias: True: the batch norms' shifts are the bias.
        padding_mode: ``"zeros"``.
        dilated_kernel_size: of ``dilated``, odd, 5 by default; None: there is no such branch.

    Raises:
        ValueError: an even ``kernel_size``, another padding, groups, bias or padding mode; in ``forward``, an input
            of another shape.

    Example:
        >>> import torch
        >>> MultiConvolution(16, 32, stride=2)(torch.randn(2, 16, 9, 7)).shape
        torch.Size([2, 32, 5, 4])
    """

    shown = ("in_channels", "out_channels", "stride")
    forms = STATIC_FORMS
    reparameterized: ReparameterizedXVolution | None
    _parts: tuple[str, ...] = ("convolution", "convolution_norm", "dilated", "dilated_norm")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: Padding = None,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: Literal[True] = True,
        padding_mode: Literal["zeros"] = "zeros",
        *,
        dilated_kernel_size: IntPair | None = DILATED_KERNEL,
        **made: Unpack[Factory],
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, dilation=dilation, **made)
        self._set_conv2d_words(kernel_size, padding, groups, padding_mode)
        if not bias:
            raise ValueError(
                "bias must be True: the batch norms of the branches add a constant in any case; leave bias out"
            )

        def convolution(kernel: tuple[int, int], step: tuple[int, int]) -> nn.Conv2d:
            padding = same_padding(kernel, step)
            return nn.Conv2d(in_channels, out_channels, kernel, self.stride, padding, step, bias=False, **made)

        self.convolution: nn.Module = convolution(self.kernel_size, self.dilation)
        self.convolution_norm: nn.Module = nn.BatchNorm2d(out_channels, **made)
        apart = (DILATED_STEP * self.dilation[0], DILATED_STEP * self.dilation[1])
        self.dilated: nn.Module | None = None
        self.dilated_norm: nn.Module | None = None
        if dilated_kernel_size is not None:
            self.dilated = convolution(check_odd(dilated_kernel_size, "dilated_kernel_size"), apart)
            self.dilated_norm = nn.BatchNorm2d(out_channels, **made)
        self.reparameterized = None

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.reparameterized is not None:
            return self.reparameterized.static(x)
        out: Tensor = self.convolution_norm(self.convolution(x))
        if self.dilated is not None and self.dilated_norm is not None:
            out = out + self.dilated_norm(self.dilated(x))
        return out

    @property
    def bias(self) -> Tensor | None:
        """The convolution's own bias, ``[C]``; None where the batch norms' shifts are the bias."""
        if self.reparameterized is not None:
            return self.reparameterized.static.a_bias()
        bias: Tensor | None = getattr(self.convolution, "bias", None)
        return bias

    def static_branches(self) -> list[StaticBranch]:
        """The convolutions, each with the line that its batch norm is in eval mode.

        Raises:
            TypeError: a branch was replaced by something that is no convolution.
            ValueError: a batch norm keeps no running statistics.
        """
        branches = [static_branch(self.convolution, self.convolution_norm)]
        if self.dilated is not None and self.dilated_norm is not None:
            branches.append(static_branch(self.dilated, self.dilated_norm))
        return branches

    def reparameterize(
        self,
        form: StaticFormChoice = "auto",
        *,
        example: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Fold the batch norms and merge the convolutions, for inference: same outputs. In place and for good.

        timm's convention, see :meth:`convattn.ACmix.reparameterize`; a second call does nothing.

        Args:
            form: how the convolutions run. ``"separate"``: one after the other, with one bias; ``"dense"``: one
                kernel, as large as all their taps together need; ``"gathered"``: all taps, each once, in one
                :func:`convattn.ops.offset_convolution`. ``"auto"``: the one of the fewest multiply-adds,
                where ``"gathered"`` pays for its copies, or with an ``example`` of the least time.
            example: ``[B, C_in, H, W]``, what the operator will run on.
            size: H and W of the map that it will run on. Products with zeros beyond the border are then not counted
                for ``"gathered"``, where it skips them (float32 on a CPU): on a map of 7 by 7 that is half of them.

        Raises:
            ValueError: an unknown form, one that is not exact for these convolutions, another one than an earlier
                call chose, or a batch norm without running statistics.
            TypeError: a branch was replaced by something that is no convolution.

        Example:
            >>> import torch
            >>> layer, x = MultiConvolution(16, 16, kernel_size=1).eval(), torch.randn(1, 16, 9, 9)
            >>> before = layer(x)
            >>> layer.reparameterize()
            >>> layer.reparameterized.form, bool(torch.allclose(layer(x), before, atol=1e-5))
            ('dense', True)
        """
        self._take_form(form, lambda: self._folded(form, example, size), *self._parts)

    def _folded(
        self, form: StaticFormChoice, example: Tensor | None, size: tuple[int, int] | None
    ) -> ReparameterizedXVolution:
        return ReparameterizedXVolution(fold_static(self.static_branches(), form, example, size), None, None)
