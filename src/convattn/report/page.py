"""A run as one self-contained HTML page."""

import math
import os
import shlex
from pathlib import Path

from convattn import __version__
from convattn.data.types import LabelledImages
from convattn.report.charts import FIRST, SECOND, Series, line_chart
from convattn.report.confusion import Confusion, classes_html, matrix_html
from convattn.report.gallery import PICTURES_LIMIT, gallery_html, least_sure, worst_first
from convattn.report.markup import count, details, duration, escape, figure, number, percent, section, table
from convattn.report.rates import rates_html
from convattn.report.run import EpochRow, Run, read_run
from convattn.report.style import CSS, PAGE

SKIPPED_LIMIT = 500

FEW_WRONG = 8
"""With fewer wrong answers than this, the least sure right ones are shown too."""

LOSS_NOTE = "training: with augmentation and label smoothing; validation: without"


def write_report(run: Path, val: LabelledImages) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The page shows what the folder holds; a run that was stopped early, or has no ACmix layer, has fewer sections.

    Args:
        run: The run folder.
        val: The validation images that ``predictions.csv`` counts.
    """
    record = read_run(Path(run))
    title = f"{_model_name(record)} on {_data_name(record)}"
    page = PAGE.substitute(title=escape(title), css=CSS, body=_body(record, title, val), version=escape(__version__))
    target = Path(run) / "report.html"
    draft = target.with_suffix(".html.tmp")
    draft.write_text(page, encoding="utf-8", errors="replace")
    os.replace(draft, target)
    return target


def _body(run: Run, title: str, val: LabelledImages) -> str:
    confusion = Confusion.of(run.classes, run.predictions)
    wrong = worst_first(run.predictions)
    unsure = least_sure(run.predictions) if len(wrong) < FEW_WRONG else []
    shown = (
        f"the {PICTURES_LIMIT} most confident of {len(wrong)}"
        if len(wrong) > PICTURES_LIMIT
        else "the most confident first"
    )
    parts = [
        _header(run, title, confusion),
        section("How it learned", _curves(run.epochs)),
        section("What it confuses", matrix_html(confusion)),
        section("Accuracy by class", classes_html(confusion), "The weakest first."),
        section("What it got wrong", gallery_html(wrong, run.classes, val), f"Validation images, {shown}."),
        section("What it was least sure of", gallery_html(unsure, run.classes, val), "Right all the same."),
        section("Attention or convolution?", rates_html(run)),
        section("Use it", _commands(run)),
        section("Files left out", _skipped(run.skipped)),
        section("Settings", details("config.yaml", f"<pre>{escape(run.config_text)}</pre>") if run.config_text else ""),
    ]
    return "\n".join(part for part in parts if part)


def _model_name(run: Run) -> str:
    return str(run.config.get("model") or "model")


def _data_name(run: Run) -> str:
    data = run.config.get("data")
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(str(folder)).name or str(folder) if folder else "scikit-learn's digits"


def _header(run: Run, title: str, confusion: Confusion) -> str:
    kind, state = ("good", "finished") if run.finished else ("warn", "interrupted")
    planned = run.config.get("epochs")
    trained = f"{len(run.epochs)} of {planned}" if isinstance(planned, int) else str(len(run.epochs))
    accuracy = [row for row in run.epochs if math.isfinite(row.val_accuracy)]
    best = max(accuracy, key=lambda row: row.val_accuracy, default=None)
    top = _summary_number(run, "accuracy", best.val_accuracy if best else math.nan)
    total = int(confusion.counts.sum())
    errors = f"{confusion.wrong} of {total} images wrong" if total else "not measured yet"
    tiles = [
        ("main", "validation accuracy", f"{percent(top, 2)} <small>{errors}</small>"),
        ("", "epochs", escape(trained)),
        ("", "best epoch", number(_summary_number(run, "best_epoch", best.epoch if best else math.nan))),
        ("", "parameters", count(_summary_number(run, "parameters", math.nan))),
        ("", "classes", str(len(run.classes))),
        ("", "validated on", f"{total or '–'}"),
        ("", "time", duration(_summary_number(run, "seconds", run.epochs[-1].seconds if run.epochs else math.nan))),
    ]
    cells = "".join(f'<div class="{kind}"><dt>{name}</dt><dd>{value}</dd></div>' for kind, name, value in tiles)
    hint = "" if run.finished else f" · go on with <code>{escape(_resume(run))}</code>"
    return (
        f'<header><div class="title"><h1>{escape(title)}</h1><span class="badge {kind}">{state}</span></div>'
        f'<p class="sub">{escape(run.folder.resolve().name)}{hint}</p><dl class="tiles">{cells}</dl></header>'
    )


def _summary_number(run: Run, key: str, otherwise: float) -> float:
    value = run.summary.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


def _curves(epochs: list[EpochRow]) -> str:
    if not epochs:
        return '<p class="intro">No epoch has ended yet.</p>'
    x = [row.epoch for row in epochs]
    train, val = [row.train_loss for row in epochs], [row.val_loss for row in epochs]
    accuracy, lr = [100 * row.val_accuracy for row in epochs], [row.lr for row in epochs]
    loss = [Series("training", x, train, SECOND), Series("validation", x, val, FIRST)]
    charts = [
        figure(
            line_chart(loss, alt=f"Training {_course(train)} Validation {_course(val)}", y_scale="log"),
            "Loss",
            LOSS_NOTE,
        ),
        figure(
            line_chart([Series("accuracy", x, accuracy)], alt=f"In percent: {_course(accuracy)}"),
            "Validation accuracy, %",
        ),
        figure(line_chart([Series("learning rate", x, lr)], alt=_course(lr)), "Learning rate"),
    ]
    head = ("epoch", "training loss", "validation loss", "accuracy", "learning rate", "seconds so far")
    rows = [
        (
            row.epoch,
            number(row.train_loss),
            number(row.val_loss),
            percent(row.val_accuracy, 2),
            number(row.lr),
            number(row.seconds, 3),
        )
        for row in epochs
    ]
    numbers = details("All numbers", table(head, rows, caption="Metrics by epoch"))
    return f'<div class="charts">{"".join(charts)}</div>{numbers}'


def _course(values: list[float]) -> str:
    """Say in words how a curve runs, for those who cannot see it."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "was not measured."
    first, last, low, high = (number(value, 3) for value in (finite[0], finite[-1], min(finite), max(finite)))
    return f"goes from {first} to {last}, lowest {low}, highest {high}."


def _resume(run: Run) -> str:
    return f"convattn train --resume {shlex.quote(str(run.folder))}"


def _commands(run: Run) -> str:
    folder = str(run.folder)
    commands = [
        ("Recognise your own images", f"convattn predict --run {shlex.quote(folder)} photo.jpg"),
        ("Measure it again", f"convattn val --run {shlex.quote(folder)}"),
        (
            "Train it again, from the same settings",
            f"convattn train --recipe {shlex.quote(os.path.join(folder, 'config.yaml'))}",
        ),
    ]
    if not run.finished:
        commands.insert(0, ("Go on training", _resume(run)))
    return "".join(f"<p>{name}</p><pre>{escape(command)}</pre>" for name, command in commands)


def _skipped(skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    rows = table(("file", "reason"), skipped[:SKIPPED_LIMIT], caption="Files left out")
    more = f"<p>… and {len(skipped) - SKIPPED_LIMIT} more in skipped.csv.</p>" if len(skipped) > SKIPPED_LIMIT else ""
    files = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    return details(f"{files} could not be read", rows + more)
