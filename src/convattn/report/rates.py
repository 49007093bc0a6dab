"""How much each ACmix layer leans on attention and on convolution: figure 5 of the ACmix paper."""

import math

from convattn.data.names import counted
from convattn.report.charts import FIRST, SECOND, Chart, Series, bars_chart, line_chart
from convattn.report.run import PathRow, Run
from convattn.report.task import Table
from convattn.report.text import number

DEPTH_LABEL = "depth: which ACmix layer, from the input"


def rates_charts(run: Run) -> list[Chart]:
    """Return the charts of |α|, |β| and log|α/β|; none for a model without ACmix layers."""
    rows = run.last_paths()
    if not rows:
        return []
    depths, ratio = [row.depth for row in rows], [row.log_ratio for row in rows]
    rates = [
        Series("|α| attention", depths, [abs(row.alpha) for row in rows], FIRST),
        Series("|β| convolution", depths, [abs(row.beta) for row in rows], SECOND),
    ]
    lean = f"log|α/β| is above zero in {sum(value > 0 for value in ratio)} of {counted(len(rows), 'layer')}."
    return [
        Chart("|α| and |β| by depth", line_chart(rates, alt=_listing(rows), x_label=DEPTH_LABEL)),
        Chart(
            "log|α/β| by depth",
            bars_chart(depths, ratio, alt=lean, x_label=DEPTH_LABEL),
            "above zero the layer leans on attention, below on convolution",
        ),
        *_movement(run.paths),
    ]


def rates_table(run: Run) -> Table:
    """Return the rates after the last epoch."""
    rows = [
        (row.depth, row.layer, number(row.alpha), number(row.beta), number(row.log_ratio, 3))
        for row in run.last_paths()
    ]
    return Table("Rates of the paths after the last epoch", ("depth", "layer", "α", "β", "log|α/β|"), rows)


def _movement(rows: list[PathRow]) -> list[Chart]:
    """Draw log|α/β| of every layer over the epochs, the deeper the stronger."""
    epochs, layers = {row.epoch for row in rows}, sorted({row.depth for row in rows})
    if len(epochs) < 2:
        return []
    series = [
        Series(
            f"depth {depth}",
            [row.epoch for row in rows if row.depth == depth],
            [row.log_ratio for row in rows if row.depth == depth],
            opacity=1.0 if len(layers) == 1 else 0.3 + 0.7 * place / (len(layers) - 1),
        )
        for place, depth in enumerate(layers)
    ]
    alt = f"log|α/β| of {counted(len(layers), 'layer')} over {counted(len(epochs), 'epoch')}."
    chart = line_chart(series, alt=alt, zero=True, legend=len(layers) <= 2)
    return [Chart("log|α/β| over the epochs", chart, "a line per layer, the deeper the stronger")]


def _listing(rows: list[PathRow]) -> str:
    shown = [row for row in rows if math.isfinite(row.alpha) and math.isfinite(row.beta)][:60]
    return "; ".join(f"depth {row.depth}: α {number(row.alpha, 3)}, β {number(row.beta, 3)}" for row in shown) + "."
