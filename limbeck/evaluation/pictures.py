"""Pictures of an analysis: similarity of layers, attention, probes by block, which layers matter.

Each function takes the plain data of ``limbeck analyze``. Needs the extra "plot"; as ``report.py``
through matplotlib's objects, so that the same data gives the same bytes.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from limbeck.evaluation.findings import curves
from limbeck.evaluation.report import make_axes, save_figure
from limbeck.evaluation.robustness import ANSWERERS, by_corruption

# Okabe and Ito's colours, told apart with any kind of colour vision; markers and lines besides.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MOST_NAMED, MOST_NUMBERED = 60, 25
"""Classes of a confusion that have their names beside it, and numbers in its cells."""

STEMS = ("similarity", "attention_distance", "attention_entropy", "probing", "layers_kept")
PICTURES = tuple(f"{stem}{suffix}" for stem in STEMS for suffix in (".png", ".svg"))
"""The files that ``draw_analysis`` may write."""


def draw_analysis(found: Mapping[str, Any], out: Path) -> list[Path]:
    """All pictures for which there are data, as .png and .svg in ``out``; returns the paths."""
    parts, number = found["parts"], found["images"]["num_images"]
    paths: list[Path] = []
    if parts.get("similarity"):
        paths += draw_similarity(out / "similarity", parts["similarity"], num_images=number)
    if parts.get("attention"):
        paths += draw_attention(out / "attention_distance", parts["attention"], "distance", number)
        paths += draw_attention(out / "attention_entropy", parts["attention"], "entropy", number)
    if parts.get("probing"):
        paths += draw_probing(out / "probing", parts["probing"])
    if parts.get("layers"):
        paths += draw_layers(out / "layers_kept", parts["layers"])
    return paths


def draw_similarity(
    file: Path, pairs: Sequence[Mapping[str, Any]], *, num_images: int
) -> list[Path]:
    """One heat map of CKA per pair of networks, layer 0 in the lower left corner, colours 0 to 1.

    Layers without a value are hatched. ``pairs``: "first", "second" and "cka", rows of the first.
    """
    figure, panels = make_panels(len(pairs), width=3.1, height=3.1, shares=False)
    image = None
    for axes, pair in zip(panels, pairs, strict=True):
        values = [[float("nan") if x is None else x for x in row] for row in pair["cka"]]
        axes.set_facecolor("#ffffff")
        axes.patch.set(hatch="////", edgecolor="#999999")
        image = axes.imshow(values, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_box_aspect(1)
        first, second = (f"layer of {_wrapped(pair[which])}" for which in ("first", "second"))
        axes.set(ylabel=first, xlabel=second)
        for axis, count in ((axes.yaxis, len(values)), (axes.xaxis, len(values[0]))):
            axis.set_ticks(_ticks(count))
    bar = figure.colorbar(image, ax=panels, shrink=0.9 if len(pairs) < 4 else 0.5, pad=0.02)
    bar.set_label("CKA (0: unrelated, 1: alike)")
    put_title(
        figure,
        f"Similarity of layers, {num_images:,} images\n"
        "(layer k: what enters block k; last layer: output)",
    )
    return save_figure(figure, file)


def draw_attention(
    file: Path, attention: Mapping[str, Mapping[str, Any]], what: str, num_images: int
) -> list[Path]:
    """One panel per network: a dot for each head, a line through the blocks' means.

    ``what``: "distance" (px) or "entropy" (nats). The dashed line is a head that looks everywhere
    alike.
    """
    title = {"distance": "How far heads look", "entropy": "How evenly heads look"}[what]
    label = {"distance": "attention distance (px)", "entropy": "attention entropy (nats)"}[what]
    figure, panels = make_panels(len(attention), width=3.4, height=2.9)
    handles: dict[str, Any] = {}
    for axes, (name, values) in zip(panels, attention.items(), strict=True):
        blocks = [i for i, heads in enumerate(values[what]) if heads is not None]
        dots = [(block, head) for block in blocks for head in values[what][block]]
        if dots:
            xs, ys = zip(*dots, strict=True)
            handles["one head"] = axes.scatter(xs, ys, s=14, color=COLORS[5], linewidths=0)
            means = [fmean(values[what][block]) for block in blocks]
            (handles["mean of the block's heads"],) = axes.plot(
                blocks, means, color=COLORS[0], marker="o", markersize=3
            )
            even = [values[f"uniform_{what}"][block] for block in blocks]
            (handles["a head that looks everywhere alike"],) = axes.plot(
                blocks, even, color="black", linestyle="--", linewidth=1
            )
        axes.set_title(_wrapped(name), loc="left")
        depth = len(values[what])
        axes.set(xlabel="block (0: first)", ylabel=label, xticks=_ticks(depth))
        axes.set_xlim(-0.6, depth - 0.4)
    top = panels[0].get_ylim()[1]  # of all, and once all are drawn: a later one may be higher
    panels[0].set_ylim(0, 1.05 * top)
    put_title(figure, f"{title}, {num_images:,} images")
    put_legend(figure, list(handles), handles.values())
    return save_figure(figure, file)


def draw_probing(file: Path, probing: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Top-1 of the kNN and the linear probe after every block, with 95 % intervals."""
    figure, panels = make_panels(2, width=4.4, height=3.4)
    handles: dict[str, Any] = {}
    titles = {"knn_top1": "kNN", "linear_top1": "linear probe"}
    for axes, (probe, title) in zip(panels, titles.items(), strict=True):
        for place, (name, scores) in enumerate(probing.items()):
            blocks = range(len(scores[probe]))
            low, mean, high = (
                [100 * score[key] for score in scores[probe]] for key in ("low", "mean", "high")
            )
            (handles[name],) = axes.plot(blocks, mean, **_style(place))
            axes.fill_between(blocks, low, high, color=_style(place)["color"], alpha=0.12, lw=0)
        axes.set_title(title, loc="left")
        axes.set(xlabel="block (0: first)", ylabel="top-1 accuracy (%)")
        axes.set_xticks(_ticks(max(len(scores[probe]) for scores in probing.values())))
    num_test = next(iter(probing.values()))["knn_top1"][0]["num_test"]
    put_title(
        figure, f"What is known after each block, {num_test:,} test images (band: 95 % interval)"
    )
    put_legend(figure, [_wrapped(name) for name in handles], handles.values())
    return save_figure(figure, file)


def draw_layers(file: Path, runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Top-1 after fine-tuning by number of kept blocks; one panel per part of the labels."""
    of_curve = curves(runs)
    fractions = sorted({fraction for _, fraction in of_curve}, reverse=True)
    names = list(dict.fromkeys(name for name, _ in of_curve))
    depths = {count for curve in of_curve.values() for count in curve}
    figure, panels = make_panels(len(fractions), width=3.9, height=3.4)
    handles: dict[str, Any] = {}
    most_seeds = 1
    for axes, fraction in zip(panels, fractions, strict=True):
        counts: set[int] = set()
        for place, name in enumerate(names):
            curve = of_curve.get((name, fraction), {})
            means = [100 * fmean(values) for values in curve.values()]
            spreads = [100 * stdev(v) if len(v) > 1 else 0.0 for v in curve.values()]
            most_seeds = max([most_seeds, *map(len, curve.values())])
            aside = 0.01 * max(depths) * (place - (len(names) - 1) / 2)  # bars do not hide bars
            handles[name] = axes.errorbar(
                [count + aside for count in curve], means, spreads, capsize=3, **_style(place)
            )
            counts |= curve.keys()
        axes.set_title(f"{100 * fraction:g} % of the labels", loc="left")
        axes.set(xlabel="pre-trained blocks kept", ylabel="top-1 accuracy (%)")
        axes.set_xticks(sorted(counts))
    spread = f" (bar: standard deviation over {most_seeds} seeds)" if most_seeds > 1 else ""
    put_title(figure, f"Fine-tuned with the first blocks kept, the rest afresh{spread}")
    put_legend(figure, [_wrapped(name) for name in handles], handles.values())
    return save_figure(figure, file)


def draw_corruptions(file: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Top-1 by severity (0: clean images) and by corruption, of the answerer most roles have.

    ``summary``: that of ``robustness.summarize``. Means over runs; a bar is their standard
    deviation.
    """
    who = max(summary, key=lambda name: len(summary[name]["rows"]))
    rows = summary[who]["rows"]
    figure, (by_level, by_name) = make_panels(2, width=4.6, height=3.6)
    handles = {}
    num_test, most_runs = 0, 1
    for place, (role, row) in enumerate(rows.items()):
        runs = row["runs"]
        most_runs = max(most_runs, len(runs))
        num_test = runs[0]["corrupted_top1"]["num_test"]
        levels = runs[0]["severities"]
        of_run = [zip(*run["top1"].values(), strict=True) for run in runs]
        clean = [run["clean_top1"] for run in runs]
        of_level = [clean, *zip(*(map(fmean, by_severity) for by_severity in of_run), strict=True)]
        means = [100 * fmean(values) for values in of_level]
        spreads = [100 * stdev(values) if len(values) > 1 else 0.0 for values in of_level]
        handles[role] = by_level.errorbar([0, *levels], means, spreads, capsize=3, **_style(place))
        names = list(runs[0]["top1"])
        of_name = by_corruption(runs)
        dots = _style(place) | {"linestyle": ""}
        aside = 0.14 * (place - (len(rows) - 1) / 2)  # marks do not hide marks
        by_name.plot(
            [x + aside for x in range(len(names))], [100 * of_name[name] for name in names], **dots
        )
    by_level.set(xlabel="severity (0: clean)", ylabel="top-1 accuracy (%)")
    by_level.set_xticks([0, *levels])
    by_level.set_title("mean of all corruptions", loc="left")
    words = [name.replace("_", " ") for name in names]
    by_name.set_xticks(range(len(names)), words, rotation=60, ha="right", fontsize=8)
    by_name.set_title("mean of all severities", loc="left")
    spread = f", bar: standard deviation over up to {most_runs} runs" if most_runs > 1 else ""
    put_title(figure, f"Under corruptions: {ANSWERERS[who]}, {num_test:,} test images{spread}")
    put_legend(figure, list(handles), handles.values())
    return save_figure(figure, file)


def draw_confusion(file: Path, confusion: np.ndarray, classes: Sequence[str]) -> list[Path]:
    """What is taken for what: rows the class, columns the answer, shares of a row in percent.

    ``confusion`` (C, C) counts. Of many classes the cells have no numbers, of very many no names.
    """
    counts = confusion.sum(axis=1, keepdims=True)
    shares = 100 * confusion / np.maximum(counts, 1)
    side = min(12.0, 2.2 + 0.42 * len(classes))
    figure, (axes,) = make_panels(1, width=max(4.0, side), height=max(3.6, side), shares=False)
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Greys")
    axes.set(xlabel="answer", ylabel="class")
    if len(classes) <= MOST_NAMED:
        names = [_wrapped(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(classes) <= MOST_NUMBERED:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            share = shares[row, column]
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                color="white" if share > 55 else "black",
            )  # fmt: skip
    figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
    put_title(figure, f"Confusion, {int(counts.sum()):,} answers")
    return save_figure(figure, file)


def put_title(figure: Any, text: str) -> None:
    """On the left, in lines that a figure of one panel has room for."""
    width = int(11 * figure.get_figwidth())  # letters of this size in an inch
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)


def make_panels(
    count: int, width: float, height: float, shares: bool = True
) -> tuple[Any, list[Any]]:
    """A figure and its axes, up to three in a row; ``width`` and ``height`` of one, in inches."""
    columns = min(3, count)
    rows = -(-count // columns)
    size = (max(5.6, 0.9 + width * columns), 1.1 + height * rows)
    figure, grid = make_axes(rows, columns, size, shares)
    for axes in grid[count:]:
        figure.delaxes(axes)
    return figure, grid[:count]


def put_legend(figure: Any, labels: Sequence[str], handles: Iterable[Any]) -> None:
    """Below the panels, in as many columns as fit; the figure grows by its height."""
    lines = [label.split("\n") for label in labels]
    widest = max((len(line) for each in lines for line in each), default=0)
    fitting = int(figure.get_figwidth() / (0.085 * widest + 0.7))  # inches: letters, and a handle
    columns = max(1, min(len(labels), fitting))
    rows = -(-len(labels) // columns)
    tallest = max(map(len, lines), default=0)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows * tallest - 1))
    figure.legend(list(handles), labels, loc="outside lower left", ncols=columns, frameon=False)


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def _ticks(count: int) -> list[int]:
    """At most nine or so whole numbers from 0, the last one among them where it has room."""
    step = next(step for step in (1, 2, 3, 4, 6, 8, 12, 24, 48) if count <= 9 * step or step == 48)
    return list(range(0, count, step))


def _wrapped(name: str) -> str:
    """A long name in a few lines, broken at spaces and underscores, its middle left out."""
    if len(name) > 66:
        name = f"{name[:34]}...{name[-29:]}"
    lines = textwrap.wrap(name.replace("_", "_ "), 28) or [name]
    return "\n".join(line.replace("_ ", "_") for line in lines)
