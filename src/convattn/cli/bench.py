"""``convattn bench``."""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from convattn.cli._options import choice
from convattn.cli._tables import make_console, print_table
from convattn.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

OPERATORS = ("acmix", "xvolution")
ROUNDS = 10
"""Turns that each of the two takes."""
NOISY = 0.15
"""IQR over median, above which times are not to be trusted."""

Name = Annotated[str, typer.Argument(help="acmix, xvolution, or a network; 'convattn list' has those.")]
Against = Annotated[str | None, typer.Option(help="Another network to compare with.", show_default=False)]
Channels = Annotated[int, typer.Option(min=4, help="Of an operator, in and out.")]
Size = Annotated[
    int | None, typer.Option(min=4, help="Height and width: 56 for an operator, 224 for a network.", show_default=False)
]
Batch = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Mode = Annotated[str, choice("--mode", "forward, or train: forward and backward.", "forward", "train")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="On the CPU; OMP_NUM_THREADS or one a core.", show_default=False)
]
Seconds = Annotated[float, typer.Option(min=0.01, help="Time to spend on each of the two.")]


def bench(
    name: Name = "acmix",
    against: Against = None,
    channels: Channels = 64,
    size: Size = None,
    batch: Batch = 1,
    mode: Mode = "forward",
    device: Device = "cpu",
    threads: Threads = None,
    seconds: Seconds = 5.0,
) -> None:
    """Time an operator or a network beside its plain twin, on this machine.

    The two take turns, so that whatever else the machine does meets both. Inference is after convattn.optimize.

    [bold]Examples[/]

      convattn bench                             ACmix(64, 64) beside Conv2d(64, 64, 3), a map of 56x56

      convattn bench xvolution --channels 256 --size 14 --mode train

      convattn bench acmix_resnet50              beside conv_resnet50, batch 1

      convattn bench acmix_swin_tiny --batch 8 --seconds 30

      OMP_NUM_THREADS=1 convattn bench acmix_resnet26 --against resnet26
    """
    import torch
    from torch.utils.benchmark import set_torch_threads

    require_device(device)
    threads = choose_threads(threads)
    twins = _operators(name, channels, against) if name in OPERATORS else _networks(name, against)
    images = _images(name, channels, size, batch, device)
    with set_torch_threads(threads), make_console(stderr=True).status("timing", refresh_per_second=2):
        calls = {title: _call(title, module, images, mode) for title, module in twins.items()}
        found = time_in_turns(calls, threads, seconds)
    where = f"{threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else torch.cuda.get_device_name(device)
    shape = "×".join(map(str, images.shape))
    _show(found, f"{'inference' if mode == 'forward' else 'forward + backward'}, {shape}, float32, {where}", name)


@dataclass(frozen=True)
class Timing:
    """What a call took.

    Args:
        seconds: of a call, measured several times.
        ratio: the median over the rounds of its time over that of the first call.
    """

    seconds: list[float]
    ratio: float


def time_in_turns(calls: dict[str, Callable[[], object]], threads: int, seconds: float) -> dict[str, Timing]:
    """Time calls by :mod:`torch.utils.benchmark`, in turns.

    Args:
        calls: the first is the one that the others are compared with.
        threads: of torch.
        seconds: for each.
    """
    from torch.utils.benchmark import Timer

    timers = [Timer("call()", globals={"call": call}, num_threads=threads) for call in calls.values()]
    rounds = [[timer.blocked_autorange(min_run_time=seconds / ROUNDS) for timer in timers] for _ in range(ROUNDS)]
    times = [[second for turn in turns for second in turn.times] for turns in zip(*rounds, strict=True)]
    ratios = [statistics.median(turn[i].median / turn[0].median for turn in rounds) for i in range(len(timers))]
    return {name: Timing(times[i], ratios[i]) for i, name in enumerate(calls)}


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(asked: int | None) -> int:
    """Return torch's threads: as many as asked for or as OMP_NUM_THREADS names, else one a core, at most one a core.

    Raises:
        UserError: more than there are cores.
    """
    import torch

    cores = usable_cores()
    if asked is not None and asked > cores:
        raise UserError(f"--threads must be at most {cores}, the cores that this process may use, got {asked}")
    return asked or (min(torch.get_num_threads(), cores) if os.environ.get("OMP_NUM_THREADS") else cores)


def require_device(device: str) -> None:
    """Raise a UserError for a device that cannot be timed or is not there."""
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or device == "cpu:":
        raise UserError(f"--device must be cpu, cuda or cuda:<number>, got {device!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: torch finds {torch.cuda.device_count()} GPUs")


def _images(name: str, channels: int, size: int | None, batch: int, device: str) -> "Tensor":
    import torch

    shape = (channels, size or 56, size or 56) if name in OPERATORS else (3, size or 224, size or 224)
    return torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)


def _operators(name: str, channels: int, against: str | None) -> "dict[str, nn.Module]":
    from torch import nn

    from convattn import ACmix, XVolution

    if against is not None:
        raise UserError("--against is for networks: an operator is timed beside the convolution that it replaces")
    if channels % 4:
        raise UserError(f"--channels must be divisible by 4, got {channels}")
    operator: Any = {"acmix": ACmix, "xvolution": XVolution}[name]
    plain = nn.Conv2d(channels, channels, 3, padding=1)
    return {
        f"Conv2d({channels}, {channels}, 3)": plain,
        f"{operator.__name__}({channels}, {channels})": operator(channels, channels),
    }


def _networks(name: str, against: str | None) -> "dict[str, nn.Module]":
    import timm

    names = [plain_twin(name) if against is None else against, name]
    for one in names:
        if not timm.is_model(one):
            hint = did_you_mean(one, [*OPERATORS, *timm.list_models()], most=3)
            raise UserError(f"no operator or network {one!r}; {hint}'convattn list' names ours")
    return {one: timm.create_model(one) for one in names}


def plain_twin(name: str) -> str:
    """Return the network that a network of ours is a variant of.

    Example:
        >>> plain_twin("acmix_resnet50"), plain_twin("acmix_pvt_tiny"), plain_twin("acmix_san10")
        ('conv_resnet50', 'pvt_v1_tiny', 'san10')
    """
    import timm

    rest = name.partition("_")[2]
    found = next((one for one in (f"conv_{rest}", rest, rest.replace("pvt_", "pvt_v1_")) if timm.is_model(one)), None)
    if timm.is_model(name) and found in (None, name):
        raise UserError(f"{name} is no variant of a plain network: name one to compare it with, --against resnet50")
    return found or name


def _call(title: str, module: "nn.Module", images: "Tensor", mode: str) -> Callable[[], object]:
    """Return what is timed, having called it once."""
    import torch

    import convattn

    module = module.to(images.device).to(memory_format=torch.channels_last).train(mode == "train")
    try:
        if mode == "train":
            run: Callable[[], object] = lambda: module(images).sum().backward()  # noqa: E731
        else:
            fast = convattn.optimize(module, images)
            run = torch.inference_mode()(lambda: fast(images))
        run()
    except (ValueError, AssertionError, RuntimeError) as error:  # as networks refuse a size
        shape = "×".join(map(str, images.shape))
        why = first_line(error)
        raise UserError(f"{title} cannot take images of {shape}: {why}; try another --size or --batch") from error
    return run


def _show(found: dict[str, Timing], title: str, name: str) -> None:
    console, table = make_console(), Table()
    table.add_column("", no_wrap=True)
    for heading in ("ms", "quartiles", "ratio"):
        table.add_column(heading, justify="right")
    base, is_noisy = next(iter(found)), False
    for subject, timing in found.items():
        low, middle, high = statistics.quantiles(timing.seconds, n=4, method="inclusive")
        is_noisy |= high - low > NOISY * middle
        shown = "1" if subject == base else f"[{'red' if round(timing.ratio, 2) > 1 else 'green'}]{timing.ratio:.2f}[/]"
        table.add_row(subject, f"{1e3 * middle:.3g}", f"{1e3 * low:.3g}–{1e3 * high:.3g}", shown)
    console.print(title, highlight=False, soft_wrap=True)
    print_table(console, table)
    if is_noisy:
        console.print("The times vary much: is the machine busy? Time longer with --seconds, or again.", style="yellow")
    step = f"convattn cost {name} {base}   (parameters and multiply-adds)"
    if name in OPERATORS:
        step = "convattn bench acmix_resnet50   (a whole network)"
    console.print(f"next: {step}", highlight=False, soft_wrap=True)
