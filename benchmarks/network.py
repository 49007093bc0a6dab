"""Measures whole networks beside a plain one: inference with everything folded, and the training step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import timm
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

import convattn
from benchmarks import gate
from benchmarks.backends import FALLBACK, only
from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from benchmarks.peak import growth
from benchmarks.record import PEAK, TIME, Check, Record, Series, to_json
from benchmarks.run import Run, record_of, require_quiet_machine, rounds_of
from benchmarks.timing import Effort, Timed, captured, clock_for, interleaved
from convattn import detection
from convattn.errors import UserError, did_you_mean

Kind: TypeAlias = Literal["model", "train"]
Form: TypeAlias = Literal["folded", "trained", "packed"]

# Largest difference of the outputs over the largest output; in training, of all gradients as one vector, by norms.
TOLERANCES = {"model": {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}, "train": {"float32": 2e-3}}
HALF_TRAIN_TOLERANCE = 3e-1  # in bfloat16, of two images: ResNet-50 0.22 on a GPU, 0.23 on a CPU, ACmix-ResNet-50 0.23
CHECKED_IMAGES = 2
DETECTION_CLASSES = 80
SECONDS = 45.0
"""A network that needs more for all rounds sits some out."""

FORMS: dict[str, Form] = {"@trained": "trained", "@packed": "packed"}
"""What may follow a network's name: inference with nothing folded, or with the weights packed too."""


@dataclass(frozen=True, kw_only=True)
class NetworkRun(Run):
    """What is asked for; ``dtype`` is of inference, in training of autocast.

    Args:
        models: names as :func:`build` knows them.
        base: the network that ratios are over.
        size: height and width of the images.
        processes: fresh processes for every network's peak memory; 0 leaves it out.
    """

    models: tuple[str, ...]
    base: str = "conv_resnet50"
    size: int = 224
    processes: int = 3

    @property
    def subjects(self) -> tuple[str, ...]:
        """The base, then the others."""
        return tuple(dict.fromkeys((self.base, *self.models)))


def measure(kind: Kind, run: NetworkRun, on_progress: OnProgress = silent) -> Record:
    """Measure networks in fresh processes: times in one, every peak of memory in its own.

    Args:
        kind: ``"model"``: inference; ``"train"``: forward, loss, backward and an SGD step.
        run: what and how.
        on_progress: gets the part that is done and what is being done.

    Raises:
        UserError: an unknown network, or a busy machine.
        RuntimeError: a process failed.
    """
    for name in run.subjects:
        require_model(name)
        require_form(name, kind, run)
    share = 0.6 if run.processes else 1.0
    record = record_of(times_here, run, lambda part, what: on_progress(share * part, what), kind=kind)
    peaks: dict[str, list[int]] = {name: [] for name in record.results}

    def on_peak(part: float, name: str) -> None:
        on_progress(share + (1 - share) * part, f"peak memory of {name}")

    for _, name in rounds_of(run.processes, record.results, on_peak):
        arguments = {"kind": kind, "name": name, "run": asdict(run)}
        peaks[name].append(call_fresh(peak_here, arguments, Process(run.threads, run.isa)))
    if not run.processes:
        return record
    results = {
        name: {**quantities, PEAK: Series("bytes", tuple(peaks[name]))} for name, quantities in record.results.items()
    }
    return replace(record, results=results)


def require_model(name: str) -> None:
    """Raise a UserError where timm does not know the network."""
    network, _, option = _without_form(name).partition(":")
    network = option if network == "retinanet" else network
    if not timm.is_model(network):
        hint = did_you_mean(network, timm.list_models(), most=3)
        raise UserError(f"no model {network!r}; {hint}'convattn list' names ours")


def require_form(name: str, kind: Kind, run: NetworkRun) -> None:
    """Raise a UserError where packed weights are asked for in what has none."""
    if form_of(name) == "packed" and (kind != "model" or (run.device, run.dtype) == ("cpu", "float16")):
        raise UserError(
            f"{name}: weights are packed for inference alone, on a CPU in float32 or bfloat16, got {kind} in "
            f"{run.dtype} on {run.device}; leave @packed out"
        )


def times_here(kind: Kind, run: dict[str, Any], on_progress: OnProgress = silent) -> str:
    """Check and time in this process; a record as JSON."""
    asked = NetworkRun(**run)
    taken, where = require_quiet_machine(asked, on_progress)
    jobs, checks = {}, {}
    for number, name in enumerate(asked.subjects):
        on_progress((0.05 + 0.25 * number / len(asked.subjects)), f"comparing {name} with the reference")
        job, checks[name] = checked(kind, build(name), asked, form_of(name))
        if checks[name].state == "right":
            jobs[name] = captured(job, asked.device)
        elif name == asked.base:
            raise RuntimeError(f"the base itself fails: {checks[name].note}")
    effort = Effort(asked.rounds, seconds=SECONDS)
    times = interleaved(jobs, clock_for(asked.device), effort, lambda part, what: on_progress(0.3 + 0.7 * part, what))
    case = asked.facts("base", "size", "batch", "dtype", "rounds") | {"models": ",".join(asked.models)}
    results = {name: {TIME: series} for name, series in times.items()}
    return to_json(Record(kind, taken, where, case, results, checks))


class RetinaNet(nn.Module):
    """A RetinaNet's backbone, pyramid and head as one output; which boxes are kept is not timed.

    Args:
        detector: of :func:`convattn.detection.retinanet`.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> all outputs in a row, ``[N]``."""
        return torch.cat([part.flatten() for part in _tensors(self.head(list(self.backbone(images).values())))])


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
        return
    for part in found.values() if isinstance(found, dict) else found:
        yield from _tensors(part)


def build(name: str) -> nn.Module:
    """A network with random weights and batch norms as after training, so that every branch counts.

    Args:
        name: timm's or convattn's; ``"<network>:<option>=<value>"`` with an option of its operator; ``"retinanet:
            <backbone>"``. One of :data:`FORMS` may follow.

    Example:
        >>> build("acmix_swin_tiny:shift=tensor").layers[0].blocks[0].attn.convolution.shift
        'tensor'
        >>> len(build("acmix_resnet14:attention_kernel_size=5").layer1[0].conv2.attention.neighborhood)
        25
    """
    torch.manual_seed(0)
    network, _, option = _without_form(name).partition(":")
    key, _, value = option.partition("=")
    if network == "retinanet":
        model: nn.Module = RetinaNet(detection.retinanet(option, DETECTION_CLASSES))
    else:
        options: dict[str, Any] = {"operator_args": {key: yaml.safe_load(value)}} if option else {}
        model = timm.create_model(network, **options)
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
    """How a network is measured: folded, unless its name says otherwise.

    As trained where it has an option of its operator: two options may be one and the same folded.
    """
    return FORMS.get(name[len(_without_form(name)) :], "trained" if ":" in name else "folded")


def _without_form(name: str) -> str:
    return name.partition("@")[0]


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
    verdict = gate.verdict(gate.error(found, expected), tolerance_of(kind, run))
    images = images_of(run, run.batch, getattr(torch, run.dtype))
    return Timed(lambda: fast(images), torch.inference_mode), verdict


def tolerance_of(kind: Kind, run: NetworkRun) -> float:
    """What the error may be."""
    return TOLERANCES[kind].get(run.dtype, HALF_TRAIN_TOLERANCE)


def inference(model: nn.Module, run: NetworkRun, form: Form = "folded") -> nn.Module:
    """The network, in channels_last and the dtype asked for; folded by :func:`convattn.optimize` where it shall be."""
    fast, dtype = model.eval(), getattr(torch, run.dtype)
    if form != "trained":
        example = torch.randn(1, 3, run.size, run.size) if run.device == "cpu" else None  # what it times are launches
        fast = convattn.optimize(fast, example)
    fast = fast.to(run.device, dtype).to(memory_format=torch.channels_last)
    if form == "packed":  # in the dtype that it runs in: packed weights are not converted
        fast = convattn.optimize(fast, images_of(run, run.batch, dtype), weights="packed")
    return fast


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
        return gate.verdict(distance / norm if math.isfinite(distance) else math.inf, tolerance, "gradient")

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


def peak_here(kind: Kind, name: str, run: dict[str, Any], on_progress: OnProgress = silent) -> int:
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
