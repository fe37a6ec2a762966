"""Embeds and probes one encoder after the other on the same images."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from limbeck.data.source import Source
from limbeck.evaluation.class_scores import ClassResult, class_result, joined
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.linear import LinearProbe
from limbeck.evaluation.neighbours import agreement
from limbeck.evaluation.probes import fit_linear, probe_scores
from limbeck.evaluation.scores import Score
from limbeck.evaluation.spread import effective_rank, uniformity
from limbeck.models.encoder import Encoder
from limbeck.recipes.look.claims import columns_of, in_order_of
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.look.shifted import Shifted, shifted_scores
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.probes import embed_source, spread_slice


class Prober:
    """Its scores of each encoder, and what else is told of those that were asked.

    ``target``: embeddings of unlabelled images which those of an encoder are to agree with;
    ``linear``: the linear probe of each encoder; ``notes``: what could not be asked.
    """

    def __init__(
        self, config: EvaluateConfig, images: Images, device: torch.device, skipped: Any,
        shifted: Shifted | None = None,
    ) -> None:  # fmt: skip
        self.config, self.images, self.device, self.skipped = config, images, device, skipped
        self.shifted = shifted or Shifted()
        self.train = spread_slice(images.train, config.max_train)
        self.target: Embeddings | None = None
        self.linear: dict[Encoder, LinearProbe] = {}
        self.notes: list[str] = []
        self._features: dict[Encoder, dict[str, float]] = {}
        self._classes: dict[Encoder, ClassResult] = {}

    def embed(self, encoder: Encoder, source: Source) -> Embeddings:
        """Embeddings of a source, on the prober's device."""
        encoder.to(self.device)
        config = self.config
        return embed_source(encoder, source, config.embed, config.data, self.device, self.skipped)

    def scores(self, encoder: Encoder) -> dict[str, Score]:
        """Its scores by probe, or its agreement with ``target`` where that is set."""
        test = self.embed(encoder, self.images.holdout)
        self._features[encoder] = {
            "rank": effective_rank(test.features),
            "uniformity": uniformity(test.features),
        }
        if self.target is not None:
            return {"neighbours": agreement(test.features, self.target.features).neighbours}
        train, classes = self.embed(encoder, self.train), self.images.whole.classes
        columns = columns_of(encoder, classes)
        if test.logits is not None:
            logits = None if columns is None else in_order_of(test.logits, columns)
            test = replace(test, logits=logits)
        probe = self.linear[encoder] = fit_linear(train, test, self.device)
        said, how = test.logits, "its own classifier"
        if said is None:
            said, how = probe.logits(test.features.to(self.device)).cpu(), "linear probe"
        assert test.labels is not None
        self._classes[encoder] = class_result(said, test.labels, classes[: said.shape[1]], how)
        scores = probe_scores(
            train, test, num_labels=self.config.num_labels, seeds=self.config.label_draws,
            k=self.config.k, device=self.device, linear=probe,
        )  # fmt: skip
        return scores | shifted_scores(self.shifted, encoder, test, probe, self.embed, self.notes)

    def features_of(self, encoders: Sequence[Encoder]) -> dict[str, float]:
        """Rank and uniformity of their features (``evaluation.spread``), the mean over runs."""
        found = [self._features[each] for each in encoders]
        return {name: fmean(each[name] for each in found) for name in found[0]}

    def classes_of(self, encoders: Sequence[Encoder]) -> ClassResult | None:
        """What they take for what, together; None of unlabelled images, and of runs of which some
        have a classifier of their own and others don't."""
        found = [self._classes[each] for each in encoders if each in self._classes]
        return joined(found) if found and len({each.how for each in found}) == 1 else None
