"""Which of many networks are worth their cost, as a list and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.evaluation.pictures import COLORS, MARKERS, make_panels, put_legend, put_title
from limbeck.evaluation.report import save_figure

COSTS = {"latency_ms": ("latency (ms)", 1.0), "params": ("parameters (millions)", 1e-6)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, score) than which none costs no more and scores better, or the reverse.

    By rising cost; of equal ones the first.
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


def draw_pareto(file: Path, found: Mapping[str, Any], score: str) -> list[Path]:
    """The plain data of a search: score against latency and against parameters.

    The line is the front; a dotted one a limit. Writes ``file`` as .png and .svg. Needs the extra
    "plot".
    """
    whole = [each for each in found["candidates"] if each["score"] is not None]
    figure, both = make_panels(2, width=4.4, height=3.6)
    handles: dict[str, Any] = {}
    for axes, (cost, (label, scale)) in zip(both, COSTS.items(), strict=True):
        points = [(scale * each["costs"][cost], 100 * each["score"]) for each in whole]
        front = [points[place] for place in pareto_front(points)]
        (handles["front"],) = axes.plot(
            *zip(*front, strict=True), color="#999999", linewidth=1, zorder=1
        )
        groups = _groups(whole, found)
        for place, (name, members) in enumerate(groups.items()):
            usual = _MARKERS[place % len(_MARKERS)], COLORS[place % len(COLORS)]
            marker, color = _LOOKS.get(name, usual)
            size = 80 if name in _LOOKS else 26
            handles[name] = axes.scatter(
                *zip(*(points[i] for i in members), strict=True),
                marker=marker, s=size, color=color, edgecolor="black", linewidth=0.5,
                zorder=3 if name in _LOOKS else 2,
            )  # fmt: skip
        if limit := found["limits"].get(cost):
            handles["limit"] = axes.axvline(scale * limit, color="black", linestyle=":", lw=1)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{score} (%)")
    put_title(figure, f"{len(whole)} shapes of a contraction, each trained briefly")
    put_legend(figure, list(handles), handles.values())
    return save_figure(figure, file)


def draw_costs(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[str],
    runtimes: Mapping[str, str],
) -> list[Path]:
    """The rows of ``limbeck cost``, by short names: of two or more with one of the ``scores`` that
    one against costs; else latency against parameters and MACs.

    Latency is that of the first of the ``runtimes`` (with their titles) in which any was measured.

    The line is the front; without scores of those that compute the most in their time. Writes
    ``file`` as .png and .svg. Needs the extra "plot".
    """
    known = {name: [row for row in rows if name in row["scores"]] for name in scores}
    score = max(known, key=lambda name: len(known[name]))
    is_scored = len(known[score]) > 1
    runtime = next((name for name in runtimes if any(name in r["latency_ms"] for r in rows)), None)
    params = {"parameters (millions)": lambda row: row["parameters"] / 1e6}
    macs = {"GMACs": lambda row: row["macs"] / 1e9}
    latency = {
        f"latency ({runtimes.get(runtime or '')}, ms)": lambda row: row["latency_ms"][runtime]
    }
    across = params | macs
    if is_scored:
        rows, up = known[score], {f"{score} (%)": lambda row: 100 * row["scores"][score]}
        across = latency | params if runtime else across
    elif runtime:
        up = latency
    else:
        across, up = params, macs
    rises = is_scored or not runtime  # what is drawn upwards is good, not a cost
    ((up_label, height),) = up.items()
    rows = [row for row in rows if not runtime or runtime in row["latency_ms"]]
    figure, panels = make_panels(len(across), width=4.4, height=3.6)
    handles: dict[str, Any] = {}
    for axes, (label, place_of) in zip(panels, across.items(), strict=True):
        points = [(place_of(row), height(row)) for row in rows]
        front = [points[i] for i in pareto_front([p if rises else p[::-1] for p in points])]
        (handles["front"],) = axes.plot(*zip(*front, strict=True), color="#999999", lw=1, zorder=1)
        for place, (row, point) in enumerate(zip(rows, points, strict=True)):
            look = {"marker": MARKERS[place % len(MARKERS)], "color": COLORS[place % len(COLORS)]}
            handles[row["name"]] = axes.scatter(
                *point, s=40, edgecolor="black", lw=0.5, zorder=2, **look
            )
        axes.set(xlabel=label, ylabel=up_label)
        axes.set_xlim(0, 1.1 * max(x for x, _ in points))
        if not is_scored:
            axes.set_ylim(0, 1.1 * max(y for _, y in points))
    put_title(figure, f"What {len(rows)} networks cost")
    put_legend(figure, list(handles), handles.values())
    return save_figure(figure, file)


_LOOKS = {
    "seed": ("s", "#ffffff"),
    "winner": ("*", "#000000"),
    "width alone": ("^", "#ffffff"),
}
_MARKERS = ("o", "D", "v", "P", "X")  # of rounds: not to be told by their colours alone


def _groups(whole: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> dict[str, list[int]]:
    """Places by round; seed, winner and width alone for themselves."""
    special = {found["baseline"]: "width alone", found["winner"]: "winner"}
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(whole):
        usual = f"round {each['round']}" if each["round"] else "seed"
        groups.setdefault(special.get(each["name"], usual), []).append(place)
    return groups
