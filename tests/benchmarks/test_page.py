"""The page of benchmarks says what the records say, losses too."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks import page
from benchmarks.answers import AFTER, LAYER, QUESTIONS
from benchmarks.machine import environment
from benchmarks.plots import Chart, Group, draw
from benchmarks.record import PEAK, TIME, Check, Floor, Record, Series, read_records
from benchmarks.requirements import REQUIREMENTS, Finding, find
from convattn import ACmix, XVolution
from convattn.cost import count
from convattn.layers.static_convolution import merged_taps, static_multiply_adds
from convattn.ops.offset_convolution import products_on, skips_zeros
from convattn.publishing import description_of

ROOT = Path(__file__).parents[2]
WHERE = replace(environment(threads=2), cpu="a processor", isa="default", quiet="yes")
FORWARD = next(r for r in REQUIREMENTS if r.record.kind == "op" and ("case", "acmix-64@56") in r.record.case)
LATENCY, STEP = (next(r for r in REQUIREMENTS if r.record.kind == kind) for kind in ("model", "train"))
FLOOR = Floor(1000, 50, Series("B/s", (1e6,)), Series("FLOP/s", (1e9,)))


def record_of(requirement, ratio, taken="2026-01-02T03:04:05+00:00", **changes):
    """A record whose time ratio, and peak ratio, is what is asked for."""
    selector, asked = requirement.record, dict(requirement.record.case)
    base, ours = ("Conv2d 3x3", "native") if selector.kind == "op" else (asked["base"], asked["models"])
    case = asked | {"base": base, "ours": "native,triton,eager", "rounds": 5}
    times = {base: (2e-3,) * 5, ours: tuple(2e-3 * ratio * f for f in (0.98, 0.99, 1, 1.01, 1.02))}
    results = {name: {TIME: Series("s", values)} for name, values in times.items()}
    if selector.kind != "op":
        for name, size in ((base, 100 << 20), (ours, int(ratio * (100 << 20)))):
            results[name][PEAK] = Series("bytes", (size,))
    where = replace(WHERE, threads=selector.threads or 8, isa=selector.isa, gpu="a GPU" if selector.gpu else "none")
    checks = {name: Check("right", 1e-7, 1e-4) for name in results} | {"triton": Check("absent", note="no GPU")}
    fields = {"case": case, "results": results, "checks": checks, "floor": FLOOR, "environment": where}
    return Record(selector.kind, taken, **(fields | changes))


def row(text, *words):
    """The cells of the only line of a table that has all these words."""
    (line,) = [line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def gates(text):
    return text[text.index("## Gates") : text.index("## Operators")]


def test_without_records_every_row_is_not_run():
    text = page.render([])
    assert f"0 of {len(REQUIREMENTS)} rows measured." in text
    assert gates(text).count("| not run |") == len(REQUIREMENTS)
    assert page.charts_of([]) == []


@pytest.mark.parametrize(
    ("ratio", "outcome", "shown"),
    [(0.90, "goal met", "0.90"), (1.10, "gate met", "**1.10**"), (1.30, "**missed**", "**1.30**")],
)
def test_a_ratio_is_held_against_gate_and_goal(ratio, outcome, shown):
    text = page.render([record_of(FORWARD, ratio)])
    cells = row(gates(text), "ACmix / conv3×3, forward |", " 64@56, batch 1 ")
    assert cells[2:4] == [shown, f"{ratio * 0.99:.2f}–{ratio * 1.01:.2f}"]
    assert cells[4:8] == ["≤ 1.15", "≤ 0.95", outcome, "native"]
    assert "op-acmix-64@56-forward-b1-20260102-030405.json" in cells[8]
    assert f"; {shown} (" in row(text, "| acmix-64@56 |")[5], "a loss stands in the same table as a win, and is bold"
    assert text.count("| not run |") == len(REQUIREMENTS) - 1


def test_every_row_finds_its_own_record():
    records = [record_of(requirement, 0.4) for requirement in REQUIREMENTS]
    assert {find(requirement, records).outcome for requirement in REQUIREMENTS} <= {"goal met", "missed"}
    for requirement in REQUIREMENTS:
        if requirement.figure.endswith("ratio"):
            found = find(requirement, records)
            assert found.value == pytest.approx(0.4, abs=0.01)
            assert requirement.record.matches(found.record)
    fraction = next(r for r in REQUIREMENTS if r.figure == "part of the byte floor")
    assert find(fraction, [record_of(fraction, 0.5)]).value == pytest.approx(1.0), "1 ms for what takes 1 ms to move"
    times = next(r for r in REQUIREMENTS if r.figure == "times the floor")
    assert find(times, [record_of(times, 0.5)]).value == pytest.approx(1.0)


def test_threads_and_instruction_set_keep_rows_apart():
    one = next(r for r in REQUIREMENTS if r.record.threads == 1)
    avx2 = next(r for r in REQUIREMENTS if r.record.isa == "avx2")
    assert [find(r, [record_of(one, 0.9)]).outcome for r in (LATENCY, one, avx2)] == ["not run", "goal met", "not run"]
    assert find(LATENCY, [record_of(avx2, 0.9)]).outcome == "not run"


def test_the_newest_record_counts():
    old, new = record_of(FORWARD, 2.0), record_of(FORWARD, 0.5, taken="2026-01-03T00:00:00+00:00")
    text = page.render([old, new])
    assert row(gates(text), " 64@56, batch 1 ", "forward |")[2] == "0.50"
    assert "20260102" not in text


def test_a_wrong_backend_is_told_and_no_other_stands_in_for_it():
    record = record_of(FORWARD, 0.9)
    results = {"Conv2d 3x3": record.results["Conv2d 3x3"], "eager": record.results["native"]}
    checks = {"native": Check("wrong", 0.5, 1e-4, "output differs | badly"), "eager": Check("right", 1e-7, 1e-4)}
    text = page.render([replace(record, results=results, checks=checks)])
    assert find(FORWARD, [replace(record, results=results, checks=checks)]).outcome == "wrong"
    assert "**wrong**: output differs \\| badly" in gates(text)
    assert "**wrong**: output differs \\| badly" in text[text.index("## Operators") :]


def test_a_busy_machine_is_told():
    text = page.render([record_of(FORWARD, 0.9, environment=replace(WHERE, quiet="no"))])
    assert "(busy)" in row(gates(text), " 64@56, batch 1 ", "forward |")[8]


def test_a_peak_that_was_not_measured_is_not_run():
    peak = next(r for r in REQUIREMENTS if r.figure == "peak ratio")
    record = record_of(peak, 0.9)
    timed = {name: {TIME: measured[TIME]} for name, measured in record.results.items()}
    assert find(peak, [record]).outcome == "goal met"
    assert find(peak, [replace(record, results=timed)]).outcome == "not run"


def test_pages_and_charts_are_written_once_and_checked(tmp_path):
    records = [record_of(requirement, 1.2) for requirement in REQUIREMENTS]
    written = page.write(records, tmp_path)
    assert {path.name for path in written} == {
        "benchmarks.md",
        *(f"benchmarks-{name}.svg" for name in ("forward", "train", "rivals", "networks")),
    }
    before = {path: path.read_text() for path in written}
    assert page.stale(records, tmp_path) == []
    page.write(records, tmp_path)
    assert {path: path.read_text() for path in written} == before, "the same records give other files"
    links = re.findall(r"\]\((benchmarks-\w+\.svg)\)", (tmp_path / "benchmarks.md").read_text())
    assert sorted(links) == sorted(path.name for path in written if path.suffix == ".svg")

    later = [*records, record_of(FORWARD, 0.8, taken="2026-02-02T00:00:00+00:00")]
    stale = {path.name for path in page.stale(later, tmp_path)}
    assert stale == {"benchmarks.md", "benchmarks-forward.svg"}
    page.write([], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks.md"], "charts without data went"


def test_a_chart_says_what_it_shows():
    chart = Chart(
        "x", "times & <more>", "ratio", groups=[Group("a", {"ours": 1.5}, 1.2, 1.0), Group("b", {"ours": 0.5})]
    )
    svg = draw(chart)
    assert description_of(svg) == chart.description
    assert draw(chart) == svg
    assert description_of("<svg></svg>") is None


def test_the_page_in_docs_is_what_the_records_of_results_say():
    records = read_records(ROOT / "results")
    stale = [str(path.relative_to(ROOT)) for path in page.stale(records, ROOT / "docs")]
    assert not stale, f"{stale} are out of date: python -m benchmarks docs"


def test_every_question_is_about_a_requirement_and_says_its_range():
    asked = {question.group for question in QUESTIONS}
    assert asked <= {requirement.group for requirement in REQUIREMENTS}
    findings = [
        Finding(requirement, "missed", float(number))
        for number, requirement in enumerate(r for r in REQUIREMENTS if r.group == LAYER)
    ]
    strided = [finding.value for finding in findings if "stride 2" in finding.requirement.what]
    told = {question.text: question.answer(findings) for question in QUESTIONS if question.group == LAYER}
    assert set(told.values()) == {f"0.00 to {min(strided) - 1:.2f}", f"{min(strided):.2f} to {max(strided):.2f}"}
    assert QUESTIONS[0].answer(findings) == "not measured"


@pytest.mark.skipif(not skips_zeros(torch.zeros(1)), reason="without CPU kernels no tap is left out")
def test_the_page_gives_the_counts_of_multiply_adds():
    strided = []
    for channels, size in ((128, 56), (256, 28), (512, 14)):
        layer = ACmix(channels, channels, stride=2, bias=False).eval()
        layer.reparameterize()
        conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        strided.append(count(layer, (channels, size, size)).macs / count(conv, (channels, size, size)).macs)
    trained = timm.create_model("xvolution_resnet50")
    of_static = saved = 0.0
    for layer, size in zip(
        (m for m in trained.modules() if isinstance(m, XVolution)), ((14, 14), (7, 7), (7, 7)), strict=True
    ):
        costs = static_multiply_adds(branches := layer.static_branches())
        nbhd, weight = merged_taps(branches)
        on_map = products_on(size, nbhd, branches[0].convolution.weight) * weight[..., 0].numel()
        of_static, saved = of_static + 49 * costs["separate"], saved + 49 * (costs["separate"] - on_map)
    total = count(trained).macs
    counts = [f"{ratio:.2f}" for ratio in (*strided, 1 - saved / total, 1 - of_static / total)]
    assert re.findall(r"\d\.\d\d", AFTER) == counts
