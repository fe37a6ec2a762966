"""int8 in ``limbeck export``: attempts, each held against PyTorch, until one is near enough."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import RunError, UserError
from limbeck.exports.formats import FORMATS, FormatName, module_of
from limbeck.recipes.ship.options import Int8Options

if TYPE_CHECKING:
    import torch

    from limbeck.exports.gate import Comparison, Tolerance
    from limbeck.exports.graph import Graph

log = logging.getLogger("limbeck")

NUM_RANKED, BATCH = 8, 8
"""Images on which layers are ranked; images of a step of the repair."""
CHECKED = 4
"""Each fourth image checks the attempts, and takes part in nothing else."""
FAR = 1e9
"""Of what is not finite: JSON has no word for that."""
NUM_REPAIR = 512
"""At most so many images take part in a repair, beside those of the ranges."""


def num_wanted(asked: Int8Options) -> int:
    """How many images are of use: a quarter of them checks the attempts."""
    return max(asked.num_images, min(BATCH * asked.repair, NUM_REPAIR))


@dataclass(frozen=True)
class Candidate:
    """A network that may be quantised, and its fp32 file."""

    words: str
    graph: Graph
    file: Path


def write_int8(
    to: FormatName, graph: Graph, file: Path, images: torch.Tensor, asked: Int8Options,
    tolerance: Tolerance,
) -> dict[str, Any]:  # fmt: skip
    """Write the file; what its JSON should say besides: the layers' sensitivities, and more.

    ``images`` (N, 3, H, W) in 0..1: none of the proof's. Raises UserError for fewer than two, and
    RunError where the tolerance is not met though half of the layers stay in fp32.
    """
    import torch

    from limbeck.exports.int8 import fewest_kept
    from limbeck.exports.rounding import folded, repaired, sensitivities

    if len(images) < 2:
        raise UserError("int8 needs images beside those of the proof; name more with --data.")
    # Folders are sorted by class: each batch, and each part of the images, is to have them all.
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    plain = folded(graph)
    others = [image for place, image in enumerate(images) if place % CHECKED]
    fed = [torch.from_numpy(plain.feed(each[None])) for each in others]
    batches = [torch.cat(fed[at : at + BATCH]) for at in range(0, len(fed), BATCH)]
    log.info("int8: how much each layer hurts ...")
    ranked = sensitivities(plain, [torch.cat(fed[:NUM_RANKED])])
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(to, graph, file.name, images, asked, tolerance, Path(folder))
        first = trials.candidate("plain", plain)
        candidates = [first]
        if asked.repair:
            log.info("int8: repair, %d steps ...", asked.repair)
            better = repaired(plain, batches, asked.repair, asked.repair_lr)
            candidates = [trials.candidate("repaired", better), *candidates]
        best, repair = trials.best(candidates), {}
        if asked.repair:
            errors = [trials.error(each) for each in (first, candidates[0])]
            repair = {"steps": asked.repair, "before": errors[0], "after": errors[1]}
            helps = "helps" if errors[1] < errors[0] else "does not help"
            log.info("int8: the repair %s: differences of %.3g, before it %.3g.", helps,
                     *errors[::-1])  # fmt: skip
        kept = fewest_kept(tuple(ranked), lambda names: trials.passes(best, names))
        if kept is None:
            raise RunError(
                "int8 moves the answers too far, even with half of the layers in floats: "
                f"{'; '.join(trials.attempt(best, ()).failures(tolerance))}.{worst_layers(ranked)}"
                + ("" if asked.repair else " Repair the weights for int8 with --int8.repair 300.")
            )
        said = trials.take(best, kept, file.parent)
    return said | {"int8": {
        "images": len(images), "repair": repair,
        "kept": [short(each) for each in kept],
        "sensitivity": {short(name): value for name, value in ranked.items()},
    }}  # fmt: skip


class Trials:
    """Attempts with one network, each written, loaded and compared once."""

    def __init__(
        self, to: FormatName, graph: Graph, name: str, images: torch.Tensor, asked: Int8Options,
        tolerance: Tolerance, folder: Path,
    ) -> None:  # fmt: skip
        self.to, self.module, self.name, self.folder = to, module_of(to), name, folder
        self.graph, self.checks = graph, images[::CHECKED]
        others = [image for place, image in enumerate(images) if place % CHECKED]
        self.feeds = [graph.feed(each[None]) for each in others[: asked.num_images]]
        # One image may always change, as in the proof.
        agreement = min(tolerance.agreement, 1 - 1 / len(self.checks))
        self.tolerance = replace(tolerance, agreement=agreement)
        self.expected = [graph.answer(each) for each in self.checks.split(BATCH)]
        self.nodes: dict[str, dict[str, str]] = {}
        self.done: dict[tuple[str, tuple[str, ...]], tuple[Path, dict[str, Any], Comparison]] = {}

    def candidate(self, words: str, graph: Graph) -> Candidate:
        """Of a network, which is written in fp32."""
        file = self.folder / f"{words}{FORMATS[self.to].suffix}"
        self.module.write(graph, file, "fp32")
        return Candidate(words, graph, file)

    def attempt(self, of: Candidate, kept: Sequence[str]) -> Comparison:
        """In what int8 differs where these layers stay higher."""
        from limbeck.exports.gate import Comparison

        key = of.words, tuple(kept)
        if key not in self.done:
            place = self.folder / str(len(self.done))
            place.mkdir()
            nodes = self._nodes(of, kept)
            said = self.module.quantise(of.file, place / self.name, self.feeds, nodes)
            run, found = self.module.load(place / self.name, said, None), Comparison()
            for batch, expected in zip(self.checks.split(BATCH), self.expected, strict=True):
                names = ["an image of those for int8"] * len(batch)
                found.add(names, expected, run(self.graph.feed(batch)))
            self.done[key] = place, said, found
            log.info("int8: %s, %d layers in floats: differences of %.3g.", of.words, len(kept),
                     mean_difference(found))  # fmt: skip
        return self.done[key][-1]

    def _nodes(self, of: Candidate, kept: Sequence[str]) -> set[str]:
        from limbeck.exports.graph import as_program, layers_of

        if not kept:
            return set()
        if of.words not in self.nodes:
            self.nodes[of.words] = layers_of(as_program(of.graph))
        nodes = self.nodes[of.words]
        return {nodes[name] for name in kept if name in nodes}

    def passes(self, of: Candidate, kept: Sequence[str]) -> bool:
        """Whether that meets the tolerance."""
        return not self.attempt(of, kept).failures(self.tolerance)

    def error(self, of: Candidate) -> float:
        """How far int8 of all layers moves the outputs."""
        return mean_difference(self.attempt(of, ()))

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Of those that pass, or of all if none does, that which moves the outputs least."""
        passing = [each for each in candidates if self.passes(each, ())]
        return min(passing or candidates, key=self.error)

    def take(self, of: Candidate, kept: Sequence[str], folder: Path) -> dict[str, Any]:
        """Bring the attempt's files to a folder; what its JSON should say."""
        place, said, _ = self.done[of.words, tuple(kept)]
        for each in place.iterdir():
            each.rename(folder / each.name)
        return said


def mean_difference(found: Comparison) -> float:
    """The mean over images of the output that moves most, as a part of its norm, or ``FAR``."""
    return min(FAR, max(sum(each) / len(each) for each in found.relative.values()))


def short(name: str) -> str:
    """A layer's name without the wrappers around the network."""
    for head in ("encoder.", "model."):
        name = name.removeprefix(head)
    return name


def worst_layers(sensitivity: dict[str, float]) -> str:
    """A sentence, with a leading space, on the layers that int8 hurts most."""
    worst = [f"{short(name)} ({value:.2g})" for name, value in [*sensitivity.items()][:3]]
    return f" Layers that int8 hurts most (difference by one alone): {', '.join(worst)}."


def words_of(told: dict[str, Any], thresholds: dict[str, Any]) -> list[str]:
    """The JSON's "int8" in lines, for people, and the confidences before and after, if known."""
    named = ", ".join(f"{name} ({told['sensitivity'][name]:.2g})" for name in told["kept"])
    count = len(told["sensitivity"])
    lines = [
        f"int8 of {count - len(told['kept'])} layers of {count}; in floats, for what int8 of each "
        f"alone would do to the outputs: {named}"
        if named
        else f"int8 of all {count} layers;{worst_layers(told['sensitivity'])}"
    ]
    if repair := told["repair"]:
        helps = "helped" if repair["after"] < repair["before"] else "did not help"
        lines.append(
            f"The repair of {repair['steps']} steps {helps}: int8 of all layers moves outputs by "
            f"{repair['after']:.2g} of their norm, before it by {repair['before']:.2g}"
        )
    if thresholds:
        before, after = thresholds["pytorch"], thresholds["file"]
        scale = thresholds.get("temperature")
        lines.append(
            f"Accept answers from a confidence of {after['threshold']:.3f} on (F1 "
            f"{after['f1']:.3f}); in PyTorch from {before['threshold']:.3f} (F1 "
            f"{before['f1']:.3f}), which here gives {thresholds['old_f1']:.3f}"
            + (f"; or divide the logits by {scale:.3f}" if scale else "")
        )
    return lines
