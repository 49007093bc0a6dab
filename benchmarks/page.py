"""``docs/benchmarks.md``: the records as tables and charts, with losses shown like gains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.answers import answers
from benchmarks.cases import ABOUT, CASES
from benchmarks.data_rows import Rows, loading, starting
from benchmarks.memory import KEPT
from benchmarks.plots import Chart, Group, draw
from benchmarks.record import PEAK, TIME, Environment, Record, milliseconds
from benchmarks.requirements import REQUIREMENTS, Finding, find
from convattn.errors import naming_file
from convattn.publishing import cell, description_of, markdown_table

PAGE = "benchmarks.md"
COMMANDS = """python -m benchmarks op 'acmix*' 'san*' 'pssa*' --batch 1,8
python -m benchmarks op 'acmix*' --mode train --batch 8
python -m benchmarks model acmix_resnet50 --batch 1 --processes 0
python -m benchmarks model acmix_resnet50 --batch 8
python -m benchmarks model acmix_resnet50 --batch 1,8 --threads 1 --processes 0
python -m benchmarks model acmix_resnet50 --batch 1,8 --isa avx2 --processes 0
python -m benchmarks model acmix_resnet50 --mode train --batch 8
python -m benchmarks model acmix_resnet50 --batch 1,8 --dtype bfloat16 --processes 0
python -m benchmarks runtime acmix_resnet50 --batch 1,8 --operators convattn
python -m benchmarks docs"""
HEAD = """# Benchmarks

<!-- written by `python -m benchmarks docs` from results/*.json; edit neither this page nor the figures -->
"""
METHOD = """## How it is measured

- A ratio divides by the plain convolution or the plain network. Both are timed alternately in one run; the ratio is the
  median over the rounds, given with its quartiles. A ratio above 1 is **bold**: ACmix costs more there.
- Before anything is timed, its result is compared with the float64 reference.
- Each measurement runs in a new process, on a machine that was idle; a record of a busy machine says so.
- A *gate* is what a change must not exceed; a *goal* is the aim. Rows that miss their gate are listed like the others.
"""
INTROS = {
    "Operators": [
        *(f"- `{name}-C@size`: {about}." for name, about in ABOUT.items()),
        "",
        "`-s2` is stride 2. A cell has the time in ms, its ratio to the convolution with quartiles, and its ratio to",
        "the floor, the time to move every byte once and to do every product at full speed.",
    ],
    "Networks": [
        "Networks are folded by `convattn.optimize` for inference; `@trained` marks those that are not,",
        '`@packed` those whose weights are packed too (`weights="packed"`).',
    ],
    "Other runtimes": [
        "Each file runs in a process of its own, in turns, with as many threads. `@pytorch` marks a network that is no",
        "file: it is folded and runs in PyTorch.",
    ],
    "Memory of one layer": ["Forward and backward, each in a fresh process."],
    "Loading images": [
        "Training images a second, decoded and augmented, with quartiles over the epochs: JPEGs in class folders and",
        "in tar shards through the loader of `convattn train`, and the same shards through timm's reader in torch's",
        "loader, with the same transform. The files are in the system's cache.",
    ],
    "Starting on many images": [
        "From the start of the process until the first training step of a tiny network is done, images of 8×8 in every",
        "form. The peak is that of the main process. The first row is what a start needs whatever the data.",
    ],
}
"""What is said above the tables of records."""
MACHINE = ["", "machine", "software", "commit", "kernels"]
NONE = "No record yet."
HOW = f"""## Measuring again

On a quiet machine of 2 cores, about 20 minutes:

```sh
{COMMANDS}
```"""
_NOT_OF_THE_CASE = ("rounds", "ours")


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the page and its charts into a folder, and remove charts that have no data any more."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = charts_of(records)
    written = [folder / PAGE, *(folder / f"{chart.name}.svg" for chart in charts)]
    for path, text in zip(written, [render(records), *(draw(chart) for chart in charts)], strict=True):
        with naming_file(path):
            path.write_text(text, encoding="utf-8")
    for old in set(folder.glob("benchmarks-*.svg")) - set(written):
        old.unlink()
    return written


def stale(records: Sequence[Record], folder: Path) -> list[Path]:
    """Files of the folder that are not what the records say."""
    page = folder / PAGE
    found = [] if _text(page) == render(records) else [page]
    charts = charts_of(records)
    for chart in charts:
        path = folder / f"{chart.name}.svg"
        if description_of(_text(path)) != chart.description:
            found.append(path)
    known = {folder / f"{chart.name}.svg" for chart in charts}
    return found + sorted(set(folder.glob("benchmarks-*.svg")) - known)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def newest(records: Sequence[Record]) -> list[Record]:
    """The last record of every case and machine, in the order of the table of cases."""
    latest: dict[tuple[str, ...], Record] = {}
    for record in records:
        case = [f"{name}={value}" for name, value in sorted(record.case.items()) if name not in _NOT_OF_THE_CASE]
        where = record.environment
        place = [where.cpu, where.gpu, where.isa, str(where.threads)]
        key = (record.kind, *case, *place)
        latest[key] = record
    order = {case.name: place for place, case in enumerate(CASES)}
    kept = sorted(latest.items(), key=lambda item: item[0])
    return [r for _, r in sorted(kept, key=lambda item: _rank(item[1], order))]


def _rank(record: Record, order: dict[str, int]) -> tuple[str | int, ...]:
    case, where = str(record.case.get("case", "")), record.environment
    size = str(record.case.get("mode", "")), order.get(case, len(order)), case, int(record.case.get("batch", 0))
    return *size, where.gpu != "none", where.isa != "default", where.isa, -where.threads


def render(records: Sequence[Record]) -> str:
    """The page as Markdown.

    Args:
        records: ordered by time.
    """
    shown = newest(records)
    machines = list(dict.fromkeys(_machine(record.environment) for record in shown))
    found = {title: (head, rows) for title, head, rows in tables(shown, lambda r: _number(r, machines))}
    findings = [find(requirement, records) for requirement in REQUIREMENTS]
    parts = [HEAD, *answers(findings), METHOD, *_gates(findings)]
    parts += [line for chart in charts_of(records) for line in (f"![{chart.title}]({chart.name}.svg)", "")]
    for title, intro in INTROS.items():
        parts += [f"## {title}", "", *intro, "", *(markdown_table(*found[title]) if title in found else [NONE]), ""]
        notes = [f"- {line}." for line in absences(shown)] if title == "Operators" else []
        parts += [*notes, ""] if notes else []
    places = [[str(place), *machine] for place, machine in enumerate(machines, 1)]
    parts += ["## Machines", "", *(markdown_table(MACHINE, places) if places else [NONE]), "", HOW]
    return "\n".join(parts).rstrip() + "\n"


def tables(
    records: Sequence[Record], place: Callable[[Record], str]
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and rows of a table for every kind of record that is there.

    Args:
        records: in order.
        place: the cell under "machine".
    """
    for title, kinds, make in (
        ("Operators", ("op",), _operators),
        ("Networks", ("model", "train"), _networks),
        ("Other runtimes", ("runtime",), _runtimes),
        ("Memory of one layer", ("memory",), _layers),
        ("Loading images", ("data",), loading),
        ("Starting on many images", ("start",), starting),
    ):
        of_kind = [record for record in records if record.kind in kinds]
        if of_kind:
            head, rows = make(of_kind)
            yield title, [*head, "machine"], [[*row, place(record)] for record, row in rows]


def place_of(record: Record) -> str:
    """A record's machine in a few words."""
    where = record.environment
    return f"{where.cpu if where.gpu == 'none' else where.gpu}, kernels {where.kernels}, torch {where.torch}"


def _number(record: Record, machines: list[tuple[str, ...]]) -> str:
    busy = "" if record.kind == "memory" else _busy(record)
    return f"{machines.index(_machine(record.environment)) + 1}{busy}"


def _gates(findings: Sequence[Finding]) -> list[str]:
    counts = {outcome: sum(f.outcome == outcome for f in findings) for outcome in ("goal met", "gate met", "missed")}
    counts["wrong"] = sum(f.outcome == "wrong" for f in findings)
    run = sum(counts.values())
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    lines = ["## Gates and goals", "", f"{run} of {len(findings)} rows measured{': ' + summary if summary else ''}."]
    lines += ["The CPU rows are for 2 threads in float32, unless they say otherwise.", ""]
    head = ["", "at", "measured", "quartiles", "gate", "goal", "verdict", "by", "record"]
    return [*lines, *markdown_table(head, [_gate_row(finding) for finding in findings]), ""]


def _gate_row(finding: Finding) -> list[str]:
    wanted, sign = finding.requirement, "≥" if finding.requirement.more_is_better else "≤"
    value, quartiles, verdict = "–", "–", str(finding.outcome)
    if finding.value is not None:
        value = _marked(finding.value) if wanted.figure.endswith("ratio") else f"{finding.value:.2f}"
        quartiles = f"{finding.quartiles[0]:.2f}–{finding.quartiles[1]:.2f}" if finding.quartiles else "–"
    if finding.outcome in ("missed", "wrong"):
        verdict = f"**{finding.outcome}**" + (f": {finding.note}" if finding.note else "")
    record = "–" if finding.record is None else f"`{finding.record.file_name}`{_busy(finding.record)}"
    limits = [f"{sign} {wanted.gate:.2f}", f"{sign} {wanted.goal:.2f}"]
    return [wanted.group, wanted.what, value, quartiles, *limits, verdict, finding.subject or "–", record]


def _operators(records: list[Record]) -> Rows:
    subjects = list(dict.fromkeys(s for r in records for s in (*r.results, *r.checks) if not _is_absent(r, s)))
    rows = []
    for record in records:
        case = [str(record.case["case"]), _mode(record), str(record.case["batch"]), _setting(record)]
        rows.append((record, [*case, *(_op_cell(record, subject) for subject in subjects)]))
    return ["case", "pass", "batch", "setting", *subjects], rows


def _is_absent(record: Record, subject: str) -> bool:
    return subject in record.checks and record.checks[subject].state == "absent"


def _op_cell(record: Record, subject: str) -> str:
    if subject not in record.results:
        wrong = subject in record.checks and record.checks[subject].state == "wrong"
        return f"**wrong**: {record.checks[subject].note}" if wrong else "–"
    median = record.results[subject][TIME].median
    if subject == record.base:
        return milliseconds(median)
    floors = "" if record.floor is None else f"; {median / record.floor.seconds:.1f} floors"
    ratio = record.ratio(subject)
    low, high = ratio.quartiles
    return f"{milliseconds(median)}; {_marked(ratio.median)} ({_short(low)}–{_short(high)}){floors}"


def absences(records: Sequence[Record]) -> list[str]:
    """Why a subject was not measured, each reason once."""
    return list(
        dict.fromkeys(
            f"{subject} was not measured on {cell(record.environment.cpu)}"
            f"{'' if record.environment.gpu == 'none' else f', {record.environment.gpu}'}: {cell(check.note)}"
            for record in records
            for subject, check in record.checks.items()
            if check.state == "absent"
        )
    )


def _networks(records: list[Record]) -> Rows:
    rows = []
    for record in records:
        what = "training step" if record.kind == "train" else "inference"
        case = [what, f"{record.case['size']}²", str(record.case["batch"]), _setting(record)]
        for subject in dict.fromkeys([*record.results, *record.checks]):
            rows.append((record, [*case, subject, *_network_cells(record, subject)]))
    return ["", "size", "batch", "setting", "network", "ms", "quartiles", "ratio", "peak MiB", "ratio"], rows


def _network_cells(record: Record, subject: str) -> list[str]:
    if subject not in record.results:
        return [f"**wrong**: {record.checks[subject].note}", *["–"] * 4]
    base, peak = subject == record.base, record.results[subject].get(PEAK)
    cells = [*_milliseconds(record, subject), "1" if base else _marked(record.ratio(subject).median)]
    if peak is None:
        return [*cells, "–", "–"]
    return [*cells, _mib(peak.median), "1" if base else _marked(record.ratio(subject, PEAK).median)]


def _runtimes(records: list[Record]) -> Rows:
    rows = []
    for record in records:
        case = [str(record.case["runtime"]), str(record.case["operators"]), str(record.case["batch"]), _setting(record)]
        for subject in record.results:
            ratio = "1" if subject == record.base else _marked(record.ratio(subject).median)
            error = record.checks[subject].error
            difference = "–" if error is None else f"{error:.0e}"
            rows.append((record, [*case, subject, *_milliseconds(record, subject), ratio, difference]))
    return ["runtime", "operators", "batch", "setting", "network", "ms", "quartiles", "ratio", "difference"], rows


def _layers(records: list[Record]) -> Rows:
    rows = []
    for record in records:
        case = "{batch}×{channels}×{height}×{width}, {dtype}".format(**record.case)
        for layer, measured in record.results.items():
            rows.append((record, [case, layer, _mib(measured[PEAK].median), _mib(measured[KEPT].median)]))
    return ["map", "layer", "peak growth MiB", "kept for backward MiB"], rows


def charts_of(records: Sequence[Record]) -> list[Chart]:
    """The charts for which there are records."""
    findings = [find(requirement, records) for requirement in REQUIREMENTS]
    networks = Chart("benchmarks-networks", "ACmix-ResNet-50 over ResNet-50", "ratio")
    for finding in findings:
        wanted = finding.requirement
        if finding.value is not None and wanted.record.kind in ("model", "train") and wanted.group.startswith("ACmix"):
            step = "training" if wanted.record.kind == "train" else "inference"
            name = "peak" if wanted.figure == "peak ratio" else "time"
            label = f"{step}\n{name}\n" + wanted.what.replace("224², ", "").replace(" at most", "").replace(", ", "\n")
            networks.groups.append(Group(label, {"ACmix": finding.value}, wanted.gate, wanted.goal))
    charts = [_operator_chart("forward", findings), _operator_chart("train", findings), _rivals(findings), networks]
    return [chart for chart in charts if chart.groups]


def _operators_of(findings: list[Finding], mode: str) -> list[tuple[str, Finding, Record]]:
    """The measured ratios over the convolution: a label of the case, what was found and where."""
    found = []
    for finding in findings:
        record = finding.record
        if record is None or finding.value is None or record.kind != "op" or record.case["mode"] != mode:
            continue
        if finding.requirement.figure == "time ratio":
            name = str(record.case["case"]).removeprefix("acmix-").replace("-s2", "\nstride 2")
            found.append((name, finding, record))
    return found


def _operator_chart(mode: str, findings: list[Finding]) -> Chart:
    title = "ACmix over a 3×3 convolution, " + ("inference" if mode == "forward" else "forward + backward")
    groups: dict[str, Group] = {}
    for name, finding, record in _operators_of(findings, mode):
        wanted = finding.requirement
        group = groups.setdefault(name, Group(name, {}, wanted.gate, wanted.goal))
        group.values[f"batch {record.case['batch']}"] = finding.value or 0.0
    return Chart(f"benchmarks-{mode}", title, "time over Conv2d's", "linear", list(groups.values()))


def _rivals(findings: list[Finding]) -> Chart:
    """Everything else that was timed, at the largest batch."""
    groups: dict[str, Group] = {}
    for name, finding, record in _operators_of(findings, "forward"):
        others = [s for s in record.results if s not in (record.base, finding.subject)]
        values = {s: record.ratio(s).median for s in (finding.subject, *others)}
        groups[name] = Group(name, values)
    title = "ACmix and its rivals over a 3×3 convolution, inference, largest batch"
    return Chart("benchmarks-rivals", title, "time over Conv2d's", "log", list(groups.values()))


def _machine(where: Environment) -> tuple[str, ...]:
    gpu = "" if where.gpu == "none" else f", {where.gpu}"
    software = f"torch {where.torch}, Python {where.python}, {where.system}"
    return f"{where.cpu}, {where.cores} cores{gpu}", software, where.commit, where.kernels


def _marked(ratio: float) -> str:
    """A ratio, bold where it is a loss."""
    return f"**{_short(ratio)}**" if round(ratio, 2) > 1 else _short(ratio)


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _milliseconds(record: Record, subject: str) -> list[str]:
    times = record.results[subject][TIME]
    low, high = times.quartiles
    return [milliseconds(times.median), f"{milliseconds(low)}–{milliseconds(high)}"]


def _mib(value: float) -> str:
    return f"{value / 2**20:.0f}"


def _mode(record: Record) -> str:
    return "forward" if record.case["mode"] == "forward" else "forward + backward"


def _setting(record: Record) -> str:
    where = record.environment
    held = "" if where.isa == "default" else f", {where.isa} at most"
    place = f"{where.threads} thread{'s' if where.threads != 1 else ''}" if where.gpu == "none" else "GPU"
    return f"{place}, {record.case['dtype']}{held}"


def _busy(record: Record) -> str:
    return " (busy)" if record.environment.quiet == "no" else ""
