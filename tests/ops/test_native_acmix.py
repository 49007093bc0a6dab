"""ACmix from its input and back to it by the CPU kernels: how images are cut, what is made by whom, and threads."""

import pytest
import torch

from convattn.layers import ACmix
from convattn.ops import Neighborhood, _native, acmix
from convattn.ops.acmix import native as native_acmix
from convattn.ops.acmix import reference as acmix_reference
from convattn.ops.acmix.inputs import AcmixInputs

pytestmark = pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")


# Whole images have a ring of rows of q, k and v; of an image that is cut, bands make their own where they overlap
# little, else all are made before. 300 inputs pass one chunk of them, 45 and 66 outputs end within a vector.
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(7, 1), (7, 2), (5, 2), (3, 1)])
@pytest.mark.parametrize(
    ("threads", "batch", "size", "inputs", "heads", "head_dim"),
    [
        (1, 2, (31, 40), 6, 3, 5),
        (2, 1, (97, 3), 300, 2, 11),
        (2, 1, (19, 6), 16, 4, 16),
        (2, 3, (13, 29), 37, 2, 11),
        (5, 7, (60, 2), 3, 1, 4),
        (3, 3, (2, 500), 5, 3, 5),
    ],
)
def test_every_way_to_make_q_k_and_v(threads, batch, size, inputs, heads, head_dim, window, stride, keep, set_threads):
    draw, channels = torch.Generator().manual_seed(0), heads * head_dim
    shapes = (batch, inputs, *size), (3 * channels, inputs, 1, 1), (3 * channels,), (head_dim, 2)
    shapes += (3 * heads, 3, 3, heads, head_dim), (channels,), (channels,)
    tables = [torch.randn(shape, generator=draw) * 0.3 for shape in shapes]
    tables[1] = tables[1] * inputs**-0.5
    nbhd = Neighborhood.window(window, stride=stride)
    true = acmix_reference.acmix(*(x.double() for x in tables), nbhd=nbhd, num_heads=heads, activation="relu")
    set_threads(threads)
    for layout in (torch.channels_last, torch.contiguous_format):
        x = tables[0].contiguous(memory_format=layout)
        given = AcmixInputs(x, *tables[1:], nbhd, heads, (1, 1), "relu", keep)
        out, qkv = native_acmix.acmix(given)
        torch.testing.assert_close(out.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())
        if keep:
            expected = torch.nn.functional.conv2d(x.double(), tables[1].double(), tables[2].double())
            torch.testing.assert_close(qkv.double(), expected, rtol=1e-4, atol=1e-5)


def test_one_pixel_of_the_input_that_is_not_finite_reaches_its_windows_alone(set_threads):
    draw, channels = torch.Generator().manual_seed(0), 22
    shapes = (1, 20, 60, 33), (3 * channels, 20, 1, 1), (11, 2), (6, 3, 3, 2, 11), (channels,)
    x, projection, position, weight, scale = (torch.randn(shape, generator=draw) for shape in shapes)
    x[0, 7, 31, 17] = float("nan")
    for threads in (1, 2):
        set_threads(threads)
        out = acmix(
            x, projection, None, position, weight, scale, nbhd=Neighborhood.window(7), num_heads=2, backend="native"
        )
        reached = torch.zeros(60, 33, dtype=torch.bool)
        reached[28:35, 14:21] = True
        assert torch.equal(out.isnan().any(1)[0], reached)


# Whole images for every thread, 448 pixels at a time, then those left over for all threads together; where threads have
# few pixels, all of them.
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(7, 1), (7, 2), (5, 2), (3, 1)])
@pytest.mark.parametrize(
    ("threads", "batch", "size", "inputs", "heads", "head_dim", "whole"),
    [
        (1, 2, (31, 40), 6, 3, 5, 2),
        (2, 5, (13, 29), 300, 2, 11, 4),
        (3, 13, (7, 10), 37, 4, 16, 12),
        (2, 21, (7, 7), 16, 2, 7, 20),
        (5, 7, (70, 3), 33, 1, 4, 5),
        (2, 2, (2, 500), 5, 3, 5, 2),
        (4, 5, (9, 11), 40, 2, 6, 0),
    ],
)
def test_every_way_to_make_the_gradients(
    threads, batch, size, inputs, heads, head_dim, whole, window, stride, keep, set_threads
):
    draw, channels = torch.Generator().manual_seed(0), heads * head_dim
    shapes = (batch, inputs, *size), (3 * channels, inputs, 1, 1), (3 * channels,), (head_dim, 2)
    shapes += (3 * heads, 3, 3, heads, head_dim), (1,), (channels,)
    tables = [torch.randn(shape, generator=draw) * 0.3 for shape in shapes]
    tables[1] = tables[1] * inputs**-0.5
    tables[0] = tables[0].contiguous(memory_format=torch.channels_last)
    nbhd = Neighborhood.window(window, stride=stride)
    set_threads(threads)
    for missing in ((), (2, 3, 6)):  # biases and the position
        leaves = [None if i in missing else x.double().requires_grad_() for i, x in enumerate(tables)]
        true = acmix_reference.acmix(*leaves, nbhd=nbhd, num_heads=heads)
        grad = torch.randn(true.shape, generator=draw)
        expected = torch.autograd.grad(true, [x for x in leaves if x is not None], grad.double())
        given = [None if i in missing else x for i, x in enumerate(tables)]
        x = AcmixInputs(*given, nbhd, heads, (1, 1), "none", keep)
        assert native_acmix._whole_images(x) == whole
        found = native_acmix.acmix_backward(grad, x, *native_acmix.acmix(x))
        assert [i for i, one in enumerate(found) if one is None] == list(missing)
        for got, wanted in zip([one for one in found if one is not None], expected, strict=True):
            bound = 1e-6 + 1e-5 * wanted.abs().max().item()
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=bound)


def _repacked(layout, dtype):
    return torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.detach().to(dtype).clone(memory_format=layout if x.dim() == 4 else torch.preserve_format),
        lambda x: x,
    )


@pytest.mark.parametrize("batch", [2, 1])
def test_saved_tensors_come_back_from_hooks_in_any_layout_and_in_their_dtype(batch, set_threads):
    """As those do that compress or move what autograd keeps; one image is shared by both threads."""
    set_threads(2)
    layer = ACmix(24, 24)
    x = torch.randn(batch, 24, 13, 15, requires_grad=True)

    def gradients():
        return torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])

    expected = gradients()
    for layout in (torch.contiguous_format, torch.channels_last):
        with _repacked(layout, torch.float32):
            for got, wanted in zip(gradients(), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())
    with (
        _repacked(torch.channels_last, torch.bfloat16),
        pytest.raises((ValueError, RuntimeError), match=r"float32|Float"),
    ):
        gradients()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_gradient_that_is_not_finite_stays_in_its_image(threads, set_threads):
    draw, channels = torch.Generator().manual_seed(0), 22
    shapes = (4, 20, 20, 30), (3 * channels, 20, 1, 1), (11, 2), (6, 3, 3, 2, 11), (1,)
    x, projection, position, weight, scale = (torch.randn(shape, generator=draw) for shape in shapes)
    inputs = AcmixInputs(x, projection, None, position, weight, scale, None, Neighborhood.window(7), 2, (1, 1), "none")
    set_threads(threads)
    out, qkv = native_acmix.acmix(inputs)
    grad = torch.ones_like(out)
    grad[2, 5, 7, 11] = float("nan")
    dx = native_acmix.acmix_backward(grad, inputs, out, qkv)[0]
    assert dx.isnan().flatten(1).any(1).tolist() == [False, False, True, False]
    reached = torch.zeros(20, 30, dtype=torch.bool)
    reached[4:11, 8:15] = True
    assert torch.equal(dx.isnan().any(1)[2], reached)
