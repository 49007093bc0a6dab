"""What the page of benchmarks opens with: what a user asks, answered by the range of the figures behind the gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.requirements import ACMIX, Finding
from convattn.publishing import markdown_table


@dataclass(frozen=True)
class Question:
    """One row of the table.

    Args:
        text: what a user wants to do.
        group: of the requirements that answer it.
        what: words that the requirement's size must have.
        without: words that it must not have.
    """

    text: str
    group: str
    what: str = ""
    without: tuple[str, ...] = ()

    def answer(self, findings: Sequence[Finding]) -> str:
        """The smallest and the largest ratio that was measured; ``"not measured"`` if none was."""
        values = [
            finding.value
            for finding in findings
            if finding.value is not None
            and finding.requirement.group == self.group
            and self.what in finding.requirement.what
            and not any(word in finding.requirement.what for word in self.without)
        ]
        if not values:
            return "not measured"
        low, high = f"{min(values):.2f}", f"{max(values):.2f}"
        return low if low == high else f"{low} to {high}"


LAYER = "ACmix / conv3×3, forward"
HELD = ("thread", "AVX2")
ELSEWHERE = "; other figures: [On a GPU](gpu.md#measured)"
QUESTIONS = (
    Question("run ACmix-ResNet-50 instead of ResNet-50, one image", f"{ACMIX}, latency", "batch 1", HELD),
    Question("the same, 8 images", f"{ACMIX}, latency", "batch 8", HELD),
    Question("the same, 8 images: peak memory", f"{ACMIX}, inference peak memory"),
    Question("train ACmix-ResNet-50 instead of ResNet-50, a step of 8 images", f"{ACMIX}, training step"),
    Question("the same: peak memory", f"{ACMIX}, training peak memory"),
    Question("run one ACmix instead of a 3×3 convolution, stride 1", LAYER, without=("stride 2",)),
    Question("the same, stride 2", LAYER, "stride 2"),
    Question("train one ACmix instead of a 3×3 convolution, stride 1", f"{LAYER} + backward", without=("stride 2",)),
    Question("the same, stride 2", f"{LAYER} + backward", "stride 2"),
    Question(
        "merge X-volution-ResNet-50 after training, instead of running it as trained",
        "X-volution-ResNet-50, re-parameterised / as trained, latency",
    ),
    Question(f"run ACmix-ResNet-50 instead of ResNet-50 on a GPU, 64 images{ELSEWHERE}", f"GPU: {ACMIX}, inference"),
    Question(f"train it on a GPU, a step of 64 images{ELSEWHERE}", f"GPU: {ACMIX}, training step"),
)
BEFORE = """## What does it cost me?

Time or memory, divided by that of what you use now: 1.00 is the same, 2.00 is twice as much. Networks at 224×224,
layers from 64 channels at 56×56 to 512 channels at 7×7; 2 CPU threads in float32, if a row says nothing else.
"""
AFTER = """
Small maps with many channels cost least, large maps with few channels most. At stride 2, q, k and v are computed at
the full resolution, which a strided convolution does not need: 1.51, 1.42 and 1.38 times its multiply-adds at 128, 256
and 512 channels. X-volution-ResNet-50 merged has 0.89 of the multiply-adds that it has as trained, and would have 0.75
if its convolutions cost nothing: half of the taps on a map of 7×7 meet zeros and are left out, but most of the network
is not X-volution. No kernel changes these counts.
"""


def answers(findings: Sequence[Finding]) -> list[str]:
    """The section, as parts to be joined by line ends."""
    rows = [[question.text, question.answer(findings)] for question in QUESTIONS]
    return [BEFORE, *markdown_table(["you want to", "ratio"], rows), AFTER]
