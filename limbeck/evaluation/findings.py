"""What an analysis shows, in words: every sentence is computed from the numbers beside it."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from limbeck.evaluation.report import TERMINAL, table

STEP = 0.05  # a change of CKA from one layer to the next that is worth a word
ALIKE = 0.02  # a difference of means over heads, as a part of the even map's, that is none


def describe(found: Mapping[str, Any]) -> str:
    """Markdown on an analysis (the plain data of ``limbeck analyze``), for people."""
    parts = found["parts"]
    lines = ["# Analysis", "", _of_images(found["images"]), ""]
    lines += [table([_of_model(model) for model in found["models"]], width=TERMINAL)]
    sections = {
        "Similarity of layers": [_similarity(pair) for pair in parts.get("similarity", [])],
        "Attention": [_attention(*item) for item in parts.get("attention", {}).items()],
        "Probes of every block": [_probing(*item) for item in parts.get("probing", {}).items()],
        "Which layers matter": which_layers(parts.get("layers", [])),
        "Notes": found["notes"],
    }
    for title, sentences in sections.items():
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
    return "\n".join(lines)


def _of_images(images: Mapping[str, Any]) -> str:
    covered = f", {images['num_classes_covered']} of {images['num_classes']} classes"
    return (
        f"Measured on {images['num_images']:,} images ({images['from']}, {images['sampling']}, "
        f"seed {images['seed']}{covered if images['num_classes'] else ', no labels'}). "
        "Blocks count from 0; layer k is what enters block k, the last layer the output."
    )


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    heads = sorted(set(model["num_heads"]))
    return {
        "network": model["name"],
        "blocks": model["depth"],
        "width": model["embed_dim"],
        "heads": "/".join(map(str, heads)),
        "patch": f"{model['patch_size']} px",
        "image": " x ".join(map(str, model["img_size"])) + " px",
        "weights": str(model["weights"])[:12],
    }


def _similarity(pair: Mapping[str, Any]) -> str:
    """Of the first network's layers with the most similar layer of the second."""
    first, second = pair["first"], pair["second"]
    curve = best_match(pair["cka"])
    known = {layer: value for layer, (value, _) in enumerate(curve) if value is not None}
    if not known:
        return f"{first} and {second}: no layer can be compared."
    if first == second:
        apart = pair["cka"][0][-1]
        ends = "unknown" if apart is None else f"{apart:.2f}"
        steps = {i: pair["cka"][i][i + 1] for i in range(len(curve) - 1)}
        steps = {block: value for block, value in steps.items() if value is not None}
        fall = "the steps between are unknown."
        if steps:
            block = min(steps, key=steps.__getitem__)
            fall = f"block {block} changes most (its input and output: {steps[block]:.2f})."
        return f"{first} with itself: first and last layer {ends}; {fall}"
    most, least = max(known, key=known.get), min(known, key=known.get)  # type: ignore[arg-type]
    if len(known) == len(curve) and known[most] - known[least] < STEP:
        return (
            f"{first} resembles {second} alike at all layers (CKA {known[least]:.2f} to "
            f"{known[most]:.2f})."
        )
    text = (
        f"{first} resembles {second} most at layer {most} (CKA {known[most]:.2f}, with its layer "
        f"{curve[most][1]}) and least at layer {least} ({known[least]:.2f}); the last layer has "
    )
    last = curve[-1][0]
    text += "no similarity to state" if last is None else f"{last:.2f}"
    falls = {
        layer: known[layer] - known[layer - 1]
        for layer in known
        if layer - 1 in known and known[layer] - known[layer - 1] < -STEP
    }
    if not falls:
        return f"{text}. From layer to layer it nowhere falls by more than {STEP:g}."
    layer = min(falls, key=falls.get)  # type: ignore[arg-type]
    return (
        f"{text}. It falls most in block {layer - 1}, from {known[layer - 1]:.2f} to "
        f"{known[layer]:.2f}."
    )


def best_match(cka: Sequence[Sequence[float | None]]) -> list[tuple[float | None, int | None]]:
    """For each layer of the first network the highest CKA with any of the second, and which."""
    found: list[tuple[float | None, int | None]] = []
    for row in cka:
        known = [(value, layer) for layer, value in enumerate(row) if value is not None]
        found.append(max(known) if known else (None, None))
    return found


def _attention(name: str, attention: Mapping[str, Any]) -> str:
    means = {
        block: (fmean(heads), fmean(attention["entropy"][block]))
        for block, heads in enumerate(attention["distance"])
        if heads is not None
    }
    if not means:
        return f"{name}: no block attends to all tokens."
    first, last = min(means), max(means)
    even = attention["uniform_distance"][last], attention["uniform_entropy"][last]
    nearest = min(means, key=lambda block: means[block][0])
    farthest = max(means, key=lambda block: means[block][0])
    heads = attention["distance"][last]
    change = means[last][0] - means[first][0]
    trend = "farther than" if change > 0 else "less far than"
    if abs(change) < ALIKE * even[0]:
        trend = "about as far as"
    text = (
        f"{name}: block {last} looks {trend} block {first} (mean distance {means[last][0]:.1f} and "
        f"{means[first][0]:.1f} px; a head that looks everywhere alike has {even[0]:.1f})."
    )
    if means[farthest][0] - means[nearest][0] >= ALIKE * even[0]:
        text += (
            f" Most local is block {nearest} ({means[nearest][0]:.1f} px), most global block "
            f"{farthest} ({means[farthest][0]:.1f} px)."
        )
    return (
        f"{text} Entropy goes from {means[first][1]:.2f} to {means[last][1]:.2f} nats (everywhere "
        f"alike: {even[1]:.2f}); the heads of block {last} reach from {min(heads):.1f} to "
        f"{max(heads):.1f} px."
    )


def _probing(name: str, probes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    sentences = []
    for probe, title in (("knn_top1", "kNN"), ("linear_top1", "linear")):
        scores = probes[probe]
        last = len(scores) - 1
        # Of equal ones the last: what comes after it adds nothing.
        best = max(range(len(scores)), key=lambda block: (scores[block]["mean"], block))
        if best == last:
            sentences.append(f"{title}: the last block is best with {_percent(scores[last])}")
            continue
        gap = 100 * (scores[best]["mean"] - scores[last]["mean"])
        overlaps = scores[last]["high"] >= scores[best]["low"]
        sentences.append(
            f"{title}: block {best} is best with {_percent(scores[best])}, {gap:.1f} points above "
            f"the last, {_percent(scores[last])}" + (" (the intervals overlap)" if overlaps else "")
        )
    return f"{name}: {'; '.join(sentences)}."


def _percent(score: Mapping[str, Any]) -> str:
    return f"{100 * score['mean']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def curves(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, float], dict[int, list[float]]]:
    """Top-1 of all seeds by number of kept blocks, for each network and label fraction."""
    found: dict[tuple[str, float], dict[int, list[float]]] = {}
    for run in runs:
        curve = found.setdefault((run["model"], run["label_fraction"]), {})
        curve.setdefault(run["keep_blocks"], []).append(run["top1"])
    return {key: dict(sorted(curve.items())) for key, curve in found.items()}


def which_layers(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each network and label fraction: what the kept blocks gain, and where most of it is."""
    return [
        f"{name}, {100 * fraction:g} % of the labels, top-1 by kept blocks: {_gain(curve)}"
        for (name, fraction), curve in curves(runs).items()
    ]


def _gain(curve: Mapping[int, Sequence[float]]) -> str:
    means = {count: 100 * fmean(values) for count, values in curve.items()}
    listed = ", ".join(f"{count}: {mean:.1f} %" for count, mean in means.items())
    fewest, most = min(means), max(means)
    if fewest == most:
        return f"{listed}."
    gain = means[most] - means[fewest]
    text = f"{listed}. Keeping {most} instead of {fewest} gives {gain:+.1f} points"
    spreads = [100 * stdev(values) for values in curve.values() if len(values) > 1]
    if not spreads:
        return f"{text} (one seed each: the luck of a run is not known)."
    text += f" (standard deviation over seeds up to {max(spreads):.1f})"
    if abs(gain) <= 2 * max(spreads):
        return f"{text}, no more than chance may give."
    if gain < 0:
        return f"{text}."
    enough = next(count for count, mean in means.items() if mean - means[fewest] >= 0.9 * gain)
    return f"{text}; nine tenths of that are there with {enough}."
