"""Pure functions over a :class:`Neighborhood`: no parameters, no state.

Convolution and attention both project each pixel and then aggregate over a neighbourhood. :func:`correlate` and
:func:`aggregate` are the two halves, :func:`attend` both with a softmax between, :func:`pixel_shift_attention`
both without one, :func:`shift_aggregate` and :func:`offset_convolution` the static side; :func:`acmix` is a whole
operator, and :func:`dynamic_conv` is X-volution with its kernel written out.
"""

from convattn.ops._dispatch import BackendUse, backend, backends
from convattn.ops.acmix import acmix
from convattn.ops.aggregate import aggregate
from convattn.ops.attend import attend
from convattn.ops.correlate import correlate
from convattn.ops.dynamic_conv import dynamic_conv
from convattn.ops.group_convolution import group_convolution
from convattn.ops.neighborhood import Border, Neighborhood
from convattn.ops.offset_convolution import offset_convolution
from convattn.ops.pixel_shift import pixel_shift_attention
from convattn.ops.scatter import scatter
from convattn.ops.shift import ShiftForm, one_hot_kernel, shift, shift_aggregate

# isort: split
from convattn.ops import formulas  # noqa: F401  of the operators above: a FLOP counter would count nothing

__all__ = [
    "BackendUse",
    "Border",
    "Neighborhood",
    "ShiftForm",
    "acmix",
    "aggregate",
    "attend",
    "backend",
    "backends",
    "correlate",
    "dynamic_conv",
    "group_convolution",
    "offset_convolution",
    "one_hot_kernel",
    "pixel_shift_attention",
    "scatter",
    "shift",
    "shift_aggregate",
]
