"""Charts of a page, by plotly: data in, a figure as plain data out, which the page draws.

Needs the extra "report". What a chart shows stands in a table beside it, too (``Chart.rows``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from limbeck.documents import parse_json
from limbeck.errors import require_extra

# Okabe and Ito's colours, told apart with any kind of colour vision, on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
MOST_ROWS = 60  # of the table beside a chart; of longer ones as many, evenly spread


@dataclass(frozen=True)
class Chart:
    """``figure``: plotly's data and layout; ``alt``: what it shows, in a sentence; ``rows``: its
    numbers."""

    figure: dict[str, Any]
    alt: str
    rows: list[dict[str, Any]]


def lines(
    title: str, drawn: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str
) -> Chart:
    """A line for each name: (places, values)."""
    traces = [
        {
            "type": "scatter", "mode": "lines+markers" if len(xs) < 40 else "lines", "name": name,
            "x": list(xs), "y": list(ys), "line": {"color": _of(COLORS, k), "dash": _of(DASHES, k)},
            "marker": {"symbol": _of(SYMBOLS, k)},
        }
        for k, (name, (xs, ys)) in enumerate(drawn.items())
    ]  # fmt: skip
    places = sorted({place for xs, _ in drawn.values() for place in xs})
    step = -(-len(places) // MOST_ROWS) if places else 1
    shown = {*places[::step], *places[-1:]}
    by_name = {name: dict(zip(*pair, strict=True)) for name, pair in drawn.items()}
    rows = [
        {x: place} | {name: values.get(place) for name, values in by_name.items()}
        for place in sorted(shown)
    ]
    ends = ", ".join(f"{name} ends at {ys[-1]:.4g}" for name, (_, ys) in drawn.items() if ys)
    return Chart(_figure(traces, x, y), f"{title}, by {x}: {ends}.", rows)


def bars(title: str, groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> Chart:
    """Of each group a bar for each name: the mean of its values, and their spread."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    traces, rows = [], []
    for k, name in enumerate(names):
        own = {label: group[name] for label, group in groups.items() if group.get(name)}
        traces.append({
            "type": "bar", "name": name, "x": list(own), "y": [fmean(v) for v in own.values()],
            "error_y": {
                "type": "data", "array": [stdev(v) if len(v) > 1 else 0 for v in own.values()],
                "visible": any(len(v) > 1 for v in own.values()),
            },
            "marker": {"color": _of(COLORS, k), "pattern": {"shape": ("", "/", ".", "x")[k % 4]}},
        })  # fmt: skip
    for label, group in groups.items():
        rows.append({"name": label} | {name: _spread(group.get(name, ())) for name in names})
    best = ", ".join(
        f"most of {name} has {max(own, key=lambda label: fmean(own[label]))}"
        for name in names
        if (own := {label: group[name] for label, group in groups.items() if group.get(name)})
    )
    return Chart(_figure(traces, "", unit), f"{title}: {best}.", rows)


def points(title: str, drawn: Mapping[str, tuple[float, float]], x: str, y: str) -> Chart:
    """A named point for each (x, y), the places across by a logarithm."""
    traces = [
        {
            "type": "scatter", "mode": "markers+text", "name": name, "x": [a], "y": [b],
            "text": [name], "textposition": "top center", "showlegend": False,
            "marker": {"size": 11, "color": _of(COLORS, k), "symbol": _of(SYMBOLS, k)},
        }
        for k, (name, (a, b)) in enumerate(drawn.items())
    ]  # fmt: skip
    figure = _figure(traces, x, y)
    figure["layout"]["xaxis"] |= {"type": "log", "nticks": 6}
    rows = [{"name": name, x: a, y: b} for name, (a, b) in drawn.items()]
    return Chart(figure, f"{title}: {len(drawn)} points.", rows)


def heat(title: str, values: Sequence[Sequence[float]], names: Sequence[str]) -> Chart:
    """Rows of shares (0..100) by name, in colours; the first row on top."""
    trace = {
        "type": "heatmap", "z": [list(row) for row in values], "x": list(names), "y": list(names),
        "colorscale": "Cividis", "zmin": 0, "zmax": 100, "colorbar": {"title": {"text": "%"}},
        "hovertemplate": "%{y} taken for %{x}: %{z:.1f} %<extra></extra>",
    }  # fmt: skip
    figure = _figure([trace], "answer", "class")
    figure["layout"]["yaxis"]["autorange"] = "reversed"
    figure["layout"]["height"] = max(380, min(900, 60 + 24 * len(names)))
    rows = [
        {"class": name} | {other: f"{share:.1f}" for other, share in zip(names, row, strict=True)}
        for name, row in zip(names, values, strict=True)
    ]
    return Chart(figure, f"{title}: a matrix of {len(names)} classes.", rows)


def library() -> str:
    """The source of plotly's JavaScript, a few MB."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise require_extra("plotly", "report", "a report") from error
    return str(get_plotlyjs())


def _figure(traces: list[dict[str, Any]], x: str, y: str) -> dict[str, Any]:
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise require_extra("plotly", "report", "a report") from error
    layout = {
        "margin": {"l": 60, "r": 16, "t": 16, "b": 56},
        "height": 360,
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "legend": {"orientation": "h", "y": -0.25},
        "hovermode": "closest",
    }
    # By plotly's own classes, which refuse what its JavaScript would silently leave out.
    drawn: dict[str, Any] = parse_json(
        graph_objects.Figure(traces, layout).to_json(), where="a chart"
    )
    return {"data": drawn["data"], "layout": layout}


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{spread}"


def _of(choices: Sequence[str], k: int) -> str:
    return choices[k % len(choices)]
