"""How much each ACmix layer leans on attention and on convolution: figure 5 of the ACmix paper."""

import math

from convattn.data.names import counted
from convattn.report.charts import FIRST, SECOND, Series, bars_chart, line_chart
from convattn.report.markup import details, figure, number, table
from convattn.report.run import PathRow, Run

DEPTH_LABEL = "depth: which ACmix layer, from the input"


def rates_html(run: Run) -> str:
    """Return the charts of |α|, |β| and log|α/β|; nothing for a model without ACmix layers."""
    rows = run.last_paths()
    if not rows:
        return ""
    depths = [row.depth for row in rows]
    alpha, beta = [abs(row.alpha) for row in rows], [abs(row.beta) for row in rows]
    ratio = [row.log_ratio for row in rows]
    rates = [Series("|α| attention", depths, alpha, FIRST), Series("|β| convolution", depths, beta, SECOND)]
    lean = sum(value > 0 for value in ratio)
    charts = [
        figure(line_chart(rates, alt=_listing(rows), x_label=DEPTH_LABEL), "|α| and |β| by depth"),
        figure(
            bars_chart(
                depths, ratio, alt=f"log|α/β| is above zero in {lean} of {len(rows)} layers.", x_label=DEPTH_LABEL
            ),
            "log|α/β| by depth",
            "above zero the layer leans on attention, below on convolution",
        ),
        _movement(run.paths),
    ]
    head = ("depth", "layer", "α", "β", "log|α/β|")
    cells = [(row.depth, row.layer, number(row.alpha), number(row.beta), number(row.log_ratio, 3)) for row in rows]
    values = details("All numbers", table(head, cells, caption="Rates of the paths after the last epoch"))
    intro = (
        '<p class="intro">Every ACmix layer adds its attention path times α and its convolution path times β, '
        "and learns both numbers: figure 5 of the paper.</p>"
    )
    return f'{intro}<div class="charts">{"".join(charts)}</div>{values}'


def _movement(rows: list[PathRow]) -> str:
    """Draw log|α/β| of every layer over the epochs, the deeper the stronger."""
    layers: dict[int, list[PathRow]] = {}
    for row in rows:
        layers.setdefault(row.depth, []).append(row)
    if len({row.epoch for row in rows}) < 2:
        return ""
    order = sorted(layers)
    series = [
        Series(
            f"depth {depth}",
            [row.epoch for row in layers[depth]],
            [row.log_ratio for row in layers[depth]],
            opacity=1.0 if len(order) == 1 else 0.3 + 0.7 * place / (len(order) - 1),
        )
        for place, depth in enumerate(order)
    ]
    alt = f"log|α/β| of {counted(len(order), 'layer')} over {counted(len({row.epoch for row in rows}), 'epoch')}."
    chart = line_chart(series, alt=alt, zero=True, legend=len(order) <= 2)
    return figure(chart, "log|α/β| over the epochs", "a line per layer, the deeper the stronger")


def _listing(rows: list[PathRow]) -> str:
    shown = [row for row in rows if math.isfinite(row.alpha) and math.isfinite(row.beta)][:60]
    return "; ".join(f"depth {row.depth}: α {number(row.alpha, 3)}, β {number(row.beta, 3)}" for row in shown) + "."
