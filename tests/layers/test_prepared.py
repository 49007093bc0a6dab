"""A folded ACmix keeps its call in inference: whatever changes between two calls, the next one is right."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn
from convattn import ACmix
from convattn.ops import _native

pytestmark = pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")


def folded(stride=1, dtype=torch.float32):
    torch.manual_seed(0)
    layer = ACmix(32, 32, num_heads=2, stride=stride).eval()
    layer.reparameterize("grouped")
    norm = nn.BatchNorm2d(32).eval()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    layer.reparameterized.absorb(norm)
    return layer.to(dtype).requires_grad_(False)


def image(*size, dtype=torch.float32):
    return torch.randn(size or (2, 32, 9, 8)).to(dtype).contiguous(memory_format=torch.channels_last)


def called(layer, x):
    """The output of the layer, and of one that never was called before."""
    fresh = copy.deepcopy(layer)
    assert fresh.reparameterized._prepared is None
    with torch.inference_mode():
        return layer(x), fresh(x)


def kept(dtype=torch.float32, stride=1):
    """A layer that has kept its call for an input, and the input."""
    layer, x = folded(stride, dtype), image(dtype=dtype)
    with torch.inference_mode():
        layer(x)
    assert layer.reparameterized._prepared is not None
    return layer, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_second_call_is_kept_and_the_same(dtype, stride):
    layer, x = kept(dtype, stride)
    first = layer.reparameterized._prepared
    found, expected = called(layer, x)
    assert layer.reparameterized._prepared is first
    assert torch.equal(found, expected)
    found, expected = called(layer, image(dtype=dtype))
    assert layer.reparameterized._prepared is first
    assert torch.equal(found, expected)


def multiply(form):
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.mul_(1.5)


def multiply_in_inference(form):
    with torch.inference_mode():
        for parameter in form.parameters():
            parameter.mul_(1.5)


def multiply_data(form):
    for parameter in form.parameters():
        parameter.data.mul_(1.5)


def set_data(form):
    for parameter in form.parameters():
        parameter.data = parameter.data * 1.5


def transpose_scale(form):
    form.weight.data = form.weight.data.flip(0).transpose(0, 1).contiguous().transpose(0, 1)


def load(form):
    form.load_state_dict({name: value * 1.5 for name, value in form.state_dict().items()})


def assign(form):
    form.load_state_dict({name: value * 1.5 for name, value in form.state_dict().items()}, assign=True)


def replace(form):
    form.scale = nn.Parameter(form.scale * 3)
    form.projection.bias = nn.Parameter(form.projection.bias + 1)


def absorb(form):
    norm = nn.BatchNorm2d(32).eval()
    nn.init.uniform_(norm.bias, 0.5, 1.5)
    form.absorb(norm, "relu")


def absorb_activation(form):
    form.absorb(activation="relu")


def move_the_storage(form):
    """As sharding frees and fetches parameters."""
    for parameter in form.parameters():
        values, storage = parameter.detach().clone(), parameter.untyped_storage()
        size = storage.size()
        storage.resize_(0)
        form.blocker = torch.full((size,), float("nan"))  # takes the memory that was freed
        storage.resize_(size)
        parameter.data.copy_(values * 1.5)


def hook(form):
    form.projection.register_forward_hook(lambda module, args, out: out * 2)


def hook_the_attention(form):
    form.attention.register_forward_hook(lambda module, args, out: out * 2)


def replace_a_forward(form):
    conv, forward = form.projection, form.projection.forward
    conv.forward = lambda x: forward(x) * 2


def replace_the_position(form):
    form.attention.position = None


CHANGES = [
    *(multiply, multiply_in_inference, multiply_data, set_data, transpose_scale, load, assign, replace, absorb),
    *(absorb_activation, move_the_storage, hook, hook_the_attention, replace_a_forward, replace_the_position),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_layer_counts(change, dtype):
    layer, x = kept(dtype)
    before = called(layer, x)[0]
    change(layer.reparameterized)
    found, expected = called(layer, x)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_a_storage_that_is_gone_is_refused():
    for name in (*dict(folded().named_parameters()), "x"):
        layer, x = kept()
        of = x if name == "x" else layer.get_parameter(name)
        of.untyped_storage().resize_(0)
        with torch.inference_mode(), pytest.raises(ValueError, match="gather or load it"):
            layer(x)


@pytest.mark.parametrize(
    "other",
    [
        image(1, 32, 9, 8),
        image(0, 32, 9, 8),
        image(2, 32, 8, 9),
        image(2, 32, 1, 1),
        image().contiguous(),
        image(2, 64, 18, 16)[:, ::2, ::2, ::2],
        image(2, 32, 9, 16)[..., ::2],
        nn.Parameter(image(), requires_grad=False),
    ],
    ids=lambda x: f"{list(x.shape)}, {list(x.stride())}",
)
def test_another_map_is_another_call(other):
    layer, x = kept()
    found, expected = called(layer, other)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    assert torch.equal(*called(layer, x))


def test_another_dtype_and_back():
    layer, x = kept()
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        found, expected = called(layer.to(dtype), x.to(dtype))
        assert found.dtype == dtype
        assert torch.equal(found, expected)
    with torch.inference_mode(), pytest.raises(ValueError, match="must have one dtype"):
        layer(x.double())
    with torch.inference_mode(), pytest.raises(ValueError, match=r"must be \[B, 32, H, W\]"):
        layer(x[:, ::2])


def test_other_threads():
    layer, x = kept()
    before, threads = called(layer, x)[0], torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found, expected = called(layer, x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, expected)
    torch.testing.assert_close(found, before)


def test_modes_and_transforms_are_seen():
    layer, x = kept()
    expected = called(layer, x)[1]
    with torch.inference_mode():
        with convattn.ops.backend("eager") as use:
            torch.testing.assert_close(layer(x), expected)
        assert use.ops
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() > 0
        with torch.profiler.profile() as profile:
            layer(x)
        assert "convattn::acmix" in {event.key for event in profile.key_averages()}
        with torch.device("meta"):
            assert torch.equal(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(layer)(x[None])[0], expected)
        traced = torch.jit.trace(layer, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected)
        exported = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        _, tangent = torch.func.jvp(layer, (x,), (x,))
        assert tangent.isfinite().all()
        assert tangent.abs().max() > 0
    wanted = x.clone().requires_grad_()
    layer(wanted).sum().backward()
    assert wanted.grad.abs().max() > 0
    assert torch.equal(layer(x), expected)
    assert layer.to("meta")(x.to("meta")).shape == expected.shape


def test_a_subclass_is_seen():
    layer, x = kept()
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    with torch.inference_mode():
        out = layer(x.as_subclass(Watched))
    assert seen
    assert torch.equal(out.as_subclass(torch.Tensor), called(layer, x)[1])


def test_what_is_saved_holds_no_call():
    layer, x = kept()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.reparameterized._prepared is None
    assert torch.equal(*called(loaded, x))
    assert torch.equal(called(loaded, x)[0], called(layer, x)[0])
