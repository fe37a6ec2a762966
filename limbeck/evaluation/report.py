"""Tables and pictures for people. Pictures are readable without colour and need the extra "plot".

matplotlib is used here and in ``pictures.py`` alone, through its objects and never through pyplot,
so that no global state and no screen is involved. The same data gives the same bytes.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from limbeck.errors import require_extra
from limbeck.evaluation.scores import Score
from limbeck.files import printable

# No fill is so dark that a black whisker would be lost on it.
FILLS = (("#707070", ""), ("#c8c8c8", ""), ("#ffffff", "///"), ("#ffffff", ""), ("#e8e8e8", "..."))
FONT: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "svg.hashsalt": "limbeck",
    "svg.fonttype": "none",
}

TERMINAL = 80  # columns of characters, the narrowest that is common


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), width: int | None = None
) -> str:
    """A Markdown table, aligned so that it also reads as plain text.

    ``columns`` chooses and orders the rows' keys; all keys of the rows if not given. Scores become
    percent with their interval; a float has four digits; None and a missing key are a dash. What
    does not fit a ``width`` goes on in a further table below, under the same first column.
    """
    columns = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    is_number = [
        all(isinstance(row.get(column), int | float | Score | None) for row in rows)
        for column in columns
    ]

    def written(line: Sequence[str], shown: Sequence[int]) -> str:
        cells = (
            line[i].rjust(widths[i]) if is_number[i] else line[i].ljust(widths[i]) for i in shown
        )
        return f"| {' | '.join(cells)} |"

    written_out = []
    for shown in _folded(widths, width):
        rule = "|".join("-" * (widths[i] + 1) + (":" if is_number[i] else "-") for i in shown)
        first, *rest = (written(line, shown) for line in lines)
        written_out.append("\n".join([first, f"|{rule}|", *rest]))
    return "\n\n".join(written_out)


def _folded(widths: Sequence[int], most: int | None) -> list[list[int]]:
    """The columns of each of the tables that are not wider than ``most``."""
    tables, used = [[0]], widths[0] + 4
    for column in range(1, len(widths)):
        if most is not None and used + widths[column] + 3 > most and len(tables[-1]) > 1:
            tables.append([0])
            used = widths[0] + 4
        tables[-1].append(column)
        used += widths[column] + 3
    return tables


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Score):
        return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def save_bars(
    file: Path, scores: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> list[Path]:
    """Grouped bars: ``scores[model][probe]`` holds one score in 0..1 per run (seed).

    A bar is the mean, its whisker the standard deviation over runs, a dot each run. The title
    should name the data and the number of test images. Writes ``file`` with the suffixes .png and
    .svg and returns both paths.
    """
    probes = list(dict.fromkeys(probe for of_probe in scores.values() for probe in of_probe))
    figure, (axes,) = make_axes(1, 1, (2.0 + 1.5 * len(probes), 4.4))
    width = 0.8 / len(scores)
    for place, (model, of_probe) in enumerate(scores.items()):
        label: str | None = model
        fill, hatch = FILLS[place % len(FILLS)]
        look = {"color": fill, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
        for group, probe in enumerate(probes):
            if not of_probe.get(probe):
                continue
            values = [100 * value for value in of_probe[probe]]
            x = group + (place - (len(scores) - 1) / 2) * width
            axes.bar(x, fmean(values), 0.92 * width, label=label, **look)
            label = None  # one entry in the legend per model
            top = max(values)
            if len(values) > 1:
                spread = stdev(values)
                axes.errorbar(x, fmean(values), spread, color="black", capsize=5)
                dots = [x + width * (i / (len(values) - 1) - 0.5) * 0.4 for i in range(len(values))]
                axes.scatter(dots, values, s=14, color="white", edgecolor="black", zorder=3)
                top = max(top, fmean(values) + spread)
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{fmean(values):.1f}", (x, top), fontsize=9, **above)
    axes.set_xticks(range(len(probes)), probes)
    axes.set_ylim(0, 109)  # room for a number above a bar of 100 %
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(title, loc="left")
    runs = max(len(values) for of_probe in scores.values() for values in of_probe.values())
    note = f"Whisker: standard deviation over runs; dots: up to {runs} runs." if runs > 1 else ""
    _legend_below(figure, axes, note)
    return save_figure(figure, file)


def make_axes(
    rows: int, columns: int, size: tuple[float, float], shares: bool = True
) -> tuple[Any, list[Any]]:
    """A figure of a ``size`` in inches and its axes, row by row.

    ``shares``: they have one scale and its lines; without, each is a framed picture.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise require_extra("matplotlib", "plot", "A picture") from error
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = list(figure.subplots(rows, columns, squeeze=False, sharey=shares).flatten())
        for axes in grid:
            axes.spines[["top", "right"]].set_visible(not shares)
            if shares:
                axes.tick_params(labelleft=True)
                axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
                axes.set_axisbelow(True)
        return figure, grid


def _legend_below(figure: Any, axes: Any, note: str) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            loc="outside lower left", ncols=min(3, len(handles)), frameon=False, title=note or None,
            alignment="left", title_fontsize=9,
        )  # fmt: skip


def save_figure(figure: Any, file: Path) -> list[Path]:
    """Write a figure as .png and .svg; returns both paths. The same data gives the same bytes."""
    import matplotlib

    file.parent.mkdir(parents=True, exist_ok=True)
    paths = [file.with_suffix(".png"), file.with_suffix(".svg")]
    _make_drawable(figure)
    # A name may have letters that the font lacks; they are drawn as boxes.
    with matplotlib.rc_context(FONT), warnings.catch_warnings(action="ignore"):
        figure.savefig(paths[0], dpi=160, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _make_drawable(figure: Any) -> None:
    """File names among a figure's texts may be no UTF-8, or look like formulas."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    def drawable(text: str) -> str:
        return printable(text).replace("\\$", "$").replace("$", "\\$")

    for text in figure.findobj(Text):
        text.set_text(drawable(text.get_text()))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_locator(), FixedLocator):  # its texts are set anew in drawing
            labels = [drawable(label.get_text()) for label in axis.get_ticklabels()]
            axis.set_ticks(axis.get_ticklocs(), labels=labels)
