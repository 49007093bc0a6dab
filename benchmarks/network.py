"""Measures whole networks beside a plain one: inference with everything folded, and the training step."""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convattn
from benchmarks import gate
from benchmarks.backends import FALLBACK, only
from benchmarks.fresh import Process, Tell, call_fresh, silent
from benchmarks.machine import environment, now
from benchmarks.peak import growth
from benchmarks.quiet import require_quiet
from benchmarks.record import PEAK, TIME, Check, Isa, Record, Series, from_json, to_json
from benchmarks.timing import Effort, Timed, clock_for, in_turns
from convattn.errors import UserError

Kind: TypeAlias = Literal["model", "train"]
Form: TypeAlias = Literal["folded", "trained"]

# Largest difference of the outputs over the largest output; in training, of all gradients as one vector, by norms.
TOLERANCES = {"model": {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}, "train": {"float32": 2e-3}}
HALF_TRAIN_TOLERANCE = 2e-1
CHECKED_IMAGES = 2

AS_TRAINED = "@trained"
"""After a network's name: inference with the network as it was trained, nothing folded."""


@dataclass(frozen=True)
class NetworkRun:
    """What is asked for.

    Args:
        models: timm's or convattn's names; :data:`AS_TRAINED` after one leaves it as it is.
        base: the network that ratios are over.
        size: height and width of the images.
        batch: images.
        dtype: of inference; in training, of autocast.
        device: by name.
        rounds: at most.
        processes: fresh processes for every network's peak memory; 0 leaves it out.
        threads: torch's.
        isa: the most that may be used.
        allow_busy: measure on a busy machine, and say so.
    """

    models: tuple[str, ...]
    base: str = "conv_resnet50"
    size: int = 224
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 30
    processes: int = 3
    threads: int = 1
    isa: Isa = "default"
    allow_busy: bool = False

    @property
    def subjects(self) -> tuple[str, ...]:
        """The base, then the others."""
        return tuple(dict.fromkeys((self.base, *self.models)))


def measure(kind: Kind, run: NetworkRun, tell: Tell = silent) -> Record:
    """Measure networks in fresh processes: times in one, every peak of memory in its own.

    Args:
        kind: ``"model"``: inference; ``"train"``: forward, loss, backward and an SGD step.
        run: what and how.
        tell: is told how far it is.

    Raises:
        UserError: an unknown network, or a busy machine.
        RuntimeError: a process failed.
    """
    for name in run.subjects:
        require_model(name)
    process, share = Process(run.threads, run.isa), 0.6 if run.processes else 1.0
    plain = call_fresh(
        times_here, {"kind": kind, "run": asdict(run)}, process, lambda part, what: tell(share * part, what)
    )
    record = from_json(json.dumps(plain))
    turns = [name for _ in range(run.processes) for name in record.results]
    peaks: dict[str, list[int]] = {name: [] for name in record.results}
    for done, name in enumerate(turns):
        tell(share + (1 - share) * done / len(turns), f"peak memory of {name}")
        peaks[name].append(call_fresh(peak_here, {"kind": kind, "name": name, "run": asdict(run)}, process))
    if not turns:
        return record
    measured = {PEAK: {name: Series("bytes", tuple(values)) for name, values in peaks.items()}}
    results = {name: quantities | {PEAK: measured[PEAK][name]} for name, quantities in record.results.items()}
    return replace(record, results=results)


def require_model(name: str) -> None:
    """Raise a UserError where timm does not know the network."""
    name = name.removesuffix(AS_TRAINED)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"no model {name!r}{hint} ('convattn list' names ours)")


def times_here(kind: Kind, run: dict[str, Any], tell: Tell = silent) -> Any:
    """Check and time in this process; a record as plain values."""
    asked, taken = NetworkRun(**run), now()
    where = environment(torch.get_num_threads(), isa=asked.isa, device=asked.device)
    tell(0.0, "is the machine quiet?")
    where = require_quiet(where, asked.device, asked.allow_busy)
    jobs, checks = {}, {}
    for number, name in enumerate(asked.subjects):
        tell((0.05 + 0.25 * number / len(asked.subjects)), f"comparing {name} with the reference")
        job, checks[name] = checked(kind, build(name), asked, form_of(name))
        if checks[name].state == "right":
            jobs[name] = job
        elif name == asked.base:
            raise RuntimeError(f"the base itself fails: {checks[name].note}")
    effort = Effort(asked.rounds, seconds=25.0 if kind == "model" else 45.0)
    clock = clock_for(asked.device)
    times = in_turns(jobs, clock, effort, lambda part, what: tell(0.3 + 0.7 * part, what))
    case: dict[str, str | int | float] = {
        "models": ",".join(name for name in asked.models),
        "base": asked.base,
        "size": asked.size,
        "batch": asked.batch,
        "dtype": asked.dtype,
        "rounds": asked.rounds,
    }
    results = {name: {TIME: series} for name, series in times.items()}
    return json.loads(to_json(Record(kind, taken, where, case, results, checks)))


def build(name: str) -> nn.Module:
    """A network with random weights and batch norms as after training, so that every branch counts."""
    torch.manual_seed(0)
    model = timm.create_model(name.removesuffix(AS_TRAINED))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images_of(run: NetworkRun, batch: int, dtype: torch.dtype) -> Tensor:
    """Random images in channels_last."""
    x = torch.randn(batch, 3, run.size, run.size, device=run.device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def form_of(name: str) -> Form:
    """Whether a network is measured folded or as trained."""
    return "trained" if name.endswith(AS_TRAINED) else "folded"


def checked(kind: Kind, model: nn.Module, run: NetworkRun, form: Form = "folded") -> tuple[Timed, Check]:
    """A network as the call to be timed, and whether it computes what it computes in float64 without our kernels."""
    if kind == "train":
        step = TrainingStep(model, run)
        return Timed(step), step.check(tolerance_of(kind, run))
    exact = copy.deepcopy(model).to(run.device).double().eval()
    x = images_of(run, min(run.batch, CHECKED_IMAGES), getattr(torch, run.dtype))
    fast = inference(model, run, form)
    with torch.inference_mode():
        found = fast(x)
        with only(FALLBACK):
            expected = exact(x.double())
    verdict = _verdict(gate.error(found, expected), tolerance_of(kind, run))
    images = images_of(run, run.batch, getattr(torch, run.dtype))
    return Timed(lambda: fast(images), torch.inference_mode), verdict


def tolerance_of(kind: Kind, run: NetworkRun) -> float:
    """What the error may be."""
    return TOLERANCES[kind].get(run.dtype, HALF_TRAIN_TOLERANCE)


def _verdict(error: float, tolerance: float) -> Check:
    if error <= tolerance:
        return Check("right", error, tolerance)
    finite = error if math.isfinite(error) else None
    return Check("wrong", finite, tolerance, f"differs from the reference by {error:.1e}")


def inference(model: nn.Module, run: NetworkRun, form: Form = "folded") -> nn.Module:
    """The network, in channels_last and the dtype asked for; folded by :func:`convattn.optimize` where it shall be."""
    fast = model.eval()
    if form == "folded":
        fast = convattn.optimize(fast, torch.randn(1, 3, run.size, run.size))
    return fast.to(run.device, getattr(torch, run.dtype)).to(memory_format=torch.channels_last)


class TrainingStep:
    """Forward, loss, backward and an SGD step with momentum.

    Args:
        model: the network; it is trained.
        run: sizes, dtype and device.
    """

    def __init__(self, model: nn.Module, run: NetworkRun) -> None:
        self.run = run
        self.model = model.to(run.device).to(memory_format=torch.channels_last).train()
        self.images = images_of(run, run.batch, torch.float32)
        self.labels = torch.arange(run.batch, device=run.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.images, self.labels, self.model).backward()
        self.optimizer.step()

    def loss(self, images: Tensor, labels: Tensor, model: nn.Module) -> Tensor:
        """Cross-entropy, under autocast where half precision is asked for."""
        half = self.run.dtype != "float32"
        with torch.autocast(self.run.device.split(":")[0], getattr(torch, self.run.dtype) if half else None, half):
            return F.cross_entropy(model(images).float(), labels)

    def check(self, tolerance: float) -> Check:
        """Compare all gradients, as one vector, with those of float64 without our kernels.

        Both networks get SiLUs for their ReLUs: rounding turns a few ReLUs on or off, and each moves the gradient of
        everything before it by far more than rounding.
        """
        few = min(self.run.batch, CHECKED_IMAGES)
        images, labels = self.images[:few], self.labels[:few]
        smooth = _with_silu(copy.deepcopy(self.model))
        exact = copy.deepcopy(smooth).double()
        found = self._gradient(smooth, self.loss(images, labels, smooth))
        with only(FALLBACK):
            expected = self._gradient(exact, F.cross_entropy(exact(images.double()), labels))
        distance, norm = float((found - expected).norm()), float(expected.norm())
        return _verdict(distance / norm if math.isfinite(distance) else math.inf, tolerance)

    @staticmethod
    def _gradient(model: nn.Module, loss: Tensor) -> Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, parameters)
        return torch.cat([g.detach().double().flatten() for g in grads])


def _with_silu(model: nn.Module) -> nn.Module:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return model


def peak_here(kind: Kind, name: str, run: dict[str, Any], tell: Tell = silent) -> int:
    """By how much one network's step, or its inference, raises the peak of this fresh process."""
    asked = NetworkRun(**run)
    model = build(name)
    job: Callable[[], object]
    if kind == "train":
        job = TrainingStep(model, asked)
    else:
        fast, images = (
            inference(model, asked, form_of(name)),
            images_of(asked, asked.batch, getattr(torch, asked.dtype)),
        )
        del model
        job = torch.inference_mode()(lambda: fast(images))
    job()  # what the libraries load and set up once, and the optimizer's state, are not the step's
    if isinstance(job, TrainingStep):
        job.optimizer.zero_grad(set_to_none=True)
    return growth(job, asked.device)
