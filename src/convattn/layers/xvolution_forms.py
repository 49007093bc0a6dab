r"""X-volution for inference: batch norms folded, the static branches in whichever exact form is cheapest.

In eval mode every branch's batch norm is a line, :math:`g y + h`. The gains go into the convolutions' kernels and into
the last linear part of the attention, the shifts into one bias. The static kernels then add up, on the offsets that
they have (``"gathered"``), or on the smallest kernel that holds them all (``"dense"``): a 3x3 kernel and a 5x5 one
dilated by 2 lie on 33 of the 81 taps of a 9x9 kernel, so one convolution would cost 81 products where the two
(``"separate"``) cost 34.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.folding import batch_norm_line, parameter_like, scale_outputs, scaled
from convattn.layers.global_attention import GlobalAttention2d
from convattn.layers.involution import Involution2d
from convattn.layers.pssa import PSSA
from convattn.layers.static_convolution import StaticConvolution, StaticForm, copy_with, static_branch


class ReparameterizedXVolution(nn.Module):
    """What :meth:`convattn.layers.XVolution.reparameterize` leaves of the operator.

    Args:
        static: the convolution branches, every bias in them.
        attention: the attention branch; None: there is none, or its gain is 0.
        gain: of the attention branch's outputs, ``[C]``, where it does not fold into it.
    """

    def __init__(self, static: StaticConvolution, attention: nn.Module | None, gain: nn.Parameter | None) -> None:
        super().__init__()
        self.static, self.attention, self.gain = static, attention, gain

    @property
    def form(self) -> StaticForm:
        """Of the convolution branches."""
        return self.static.form

    def combine(self, static: Tensor, attention: Tensor) -> Tensor:
        """The sum of the two, the attention's gain applied."""
        if self.gain is None:
            return static + attention.to(static.dtype)
        if attention.dtype != static.dtype:  # float32 under autocast to float16
            return static + (attention * self.gain[:, None, None]).to(static.dtype)
        return torch.addcmul(static, attention, self.gain.to(attention.dtype)[:, None, None])

    @torch.no_grad()
    def absorb(self, batch_norm: nn.Module) -> None:
        """Take over the batch norm (in eval mode) that follows.

        Raises:
            ValueError: a batch norm without running statistics or of other channels.
        """
        like = self.static.a_bias()
        gain, shift = batch_norm_line(batch_norm, len(like))
        self.static.multiply(gain, shift)
        if self.attention is None:
            return
        if self.gain is not None:
            self.gain = scaled(self.gain, gain)
        else:
            self.gain = fold_gain(self.attention, gain, like)

    def extra_repr(self) -> str:
        """How the parts are joined."""
        if self.attention is None:
            return "no attention"
        return "attention's batch norm in " + ("its weights" if self.gain is None else "a gain of its outputs")


@torch.no_grad()
def fold_gain(attention: nn.Module, gain: Tensor, like: Tensor) -> nn.Parameter | None:
    """Multiply what an attention gives by ``[C]``, inside it; where it has no place for that, the gain is returned."""
    if not is_hooked(attention):
        if type(attention) in (PSSA, GlobalAttention2d):
            cast("PSSA | GlobalAttention2d", attention).multiply(gain)
            return None
        if type(attention) is Involution2d and attention.projection is not None:
            scale_outputs(attention.projection, gain)
            return None
    return parameter_like(gain, like)


def fold_inside(attention: nn.Module) -> None:
    """Fold what an attention has inside: its own ``reparameterize``, involution's batch norm."""
    if callable(getattr(attention, "reparameterize", None)):
        attention.reparameterize()  # type: ignore[operator]
    elif type(attention) is Involution2d and not is_hooked(attention):
        conv, norm, *rest = attention.reduce
        if type(conv) is nn.Conv2d and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            branch = static_branch(conv, norm)
            attention.reduce = nn.Sequential(copy_with(branch, branch.bias()), nn.Identity(), *rest)
