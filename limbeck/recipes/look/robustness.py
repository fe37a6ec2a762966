"""How much of a network's accuracy is left on corrupted images (arXiv 1903.12261).

Part of ``limbeck evaluate --corruptions all``, and a function for recipes and experiments.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import to_plain
from limbeck.documents import read_json
from limbeck.errors import RunError, UserError
from limbeck.recipes.look.claims import columns_of, in_order_of
from limbeck.recipes.run.options import EmbedOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from limbeck.data.corrupted import Condition
    from limbeck.data.options import CorruptionOptions, DataOptions
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Source
    from limbeck.evaluation.linear import LinearProbe
    from limbeck.evaluation.robustness import Robustness
    from limbeck.evaluation.scores import Score
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.records import Batch

log = logging.getLogger("limbeck")

REVISION = 1  # of how images are corrupted and shown; a change makes kept scores void


def check_images(images: Images, options: CorruptionOptions) -> None:
    """Before the work: raise UserError for images without labels, or published files that lack."""
    if options.wanted:
        _check_labelled(images)
        _open_root(images, options)


def corrupted_scores(
    encoders: Mapping[str, Encoder],
    images: Images,
    options: CorruptionOptions,
    device: torch.device,
    *,
    data: DataOptions,
    embed: EmbedOptions,
    probes: Mapping[str, LinearProbe] | None = None,
    skipped: SkippedLog | None = None,
    keep: Path | None = None,
) -> dict[str, dict[str, Robustness]]:
    """Each network's answers to held-out images under the wanted corruptions, by who answers.

    "corrupted_top1" is its own classifier, where that is of the images' classes;
    "corrupted_linear_top1" the network's probe of ``probes``, on features pooled by ``embed.pool``.
    All networks of one image size see the same pixels, which are decoded once. ``keep``: a folder
    where measured scores stay, from which they are taken when the same is asked again. Networks are
    moved to ``device``. Raises UserError for images without labels and for a network that nobody
    answers for.
    """
    from limbeck.data.skipped import SkippedLog

    _check_labelled(images)
    shower = _Shower(images, options, device, data, embed)
    asked = {}
    found: dict[str, dict[str, Robustness]] = {}
    for name, encoder in encoders.items():
        probe = (probes or {}).get(name)
        answers = _answers(name, encoder, probe, images.whole.classes)
        request = shower.request(encoder, probe)
        kept = _read_kept(keep, request)
        if kept is not None and kept.keys() == answers.keys():
            log.info("%s: its scores under corruptions were measured before.", name)
            found[name] = kept
        else:
            asked[name] = encoder.to(device), answers, request
    if skipped is None:
        skipped = SkippedLog(None, images.num_images, data.max_bad_ratio)
    for size in sorted({encoder.facts.img_size[0] for encoder, _, _ in asked.values()}):
        group = {k: v for k, v in asked.items() if v[0].facts.img_size[0] == size}
        hits = _hits({k: v[:2] for k, v in group.items()}, shower.batches(size, skipped), embed)
        for name, (_, answers, request) in group.items():
            found[name] = {who: shower.collect(hits, name, who) for who in answers}
            _write_kept(keep, request, found[name])
    return {name: found[name] for name in encoders}


def ask_roles(
    groups: Mapping[str, Sequence[Encoder]],
    probes: Mapping[Encoder, LinearProbe],
    ask: Callable[..., dict[str, dict[str, Robustness]]],
) -> dict[str, list[dict[str, Robustness]]]:
    """Several runs for each role; ``ask`` is ``corrupted_scores`` but for networks and probes."""
    named = {
        f"{role} {number}": encoder
        for role, group in groups.items()
        for number, encoder in enumerate(group, 1)
    }
    found = ask(named, probes={name: probes[encoder] for name, encoder in named.items()})
    answers = iter(found.values())
    return {role: [next(answers) for _ in group] for role, group in groups.items()}


def add_scores(
    scores: Mapping[str, Sequence[dict[str, Score]]],
    answers: Mapping[str, Sequence[Mapping[str, Robustness]]],
) -> None:
    """Mean scores beside the other scores of each run, in place."""
    for role, runs in answers.items():
        for own, run in zip(scores[role], runs, strict=True):
            own |= {who: each.score for who, each in run.items()}


def notes_of(groups: Mapping[str, Sequence[Encoder]], options: CorruptionOptions) -> list[str]:
    """What the reader of these scores must know."""
    notes = []
    if not options.root:
        notes.append(
            "Corruptions were made here, of the kinds and severities of CIFAR-10-C (below 85 px) "
            "or ImageNet-C; scores do not compare with those on the published files, for which "
            "there is --corruptions.root."
        )
    sizes = sorted({each.facts.img_size[0] for group in groups.values() for each in group})
    if len(sizes) > 1 and not options.root:
        notes.append(
            f"Networks of {' and '.join(map(str, sizes))} px were each shown images corrupted in "
            "their own size, which are not equally hard."
        )
    return notes


def _check_labelled(images: Images) -> None:
    if not images.is_labelled:
        raise UserError(
            "The images have no labels, without which accuracy under corruptions can't be told; "
            "sort them into class folders, or leave --corruptions out."
        )


def _open_root(images: Images, options: CorruptionOptions) -> dict[Condition, Source] | None:
    from limbeck.data.published import open_published

    if not options.root:
        return None
    return open_published(
        options.root,
        options.wanted,
        options.levels,
        classes=images.whole.classes,
        num_images=options.num_images,
    )


class _Shower:
    """Shows the same held-out images to whoever asks, clean and under every condition."""

    def __init__(
        self,
        images: Images,
        options: CorruptionOptions,
        device: torch.device,
        data: DataOptions,
        embed: EmbedOptions,
    ) -> None:
        from limbeck.data.sample import draw_sample

        self.options, self.device, self.data, self.embed = options, device, data, embed
        self.clean = draw_sample(images.holdout, options.num_images, seed=0)
        self.conditions = [(name, s) for name in options.wanted for s in options.levels]
        self.published = _open_root(images, options)

    def request(self, encoder: Encoder, probe: LinearProbe | None) -> dict[str, Any]:
        """What decides the answers of a network, as plain data."""
        from limbeck.data.open import data_fingerprint
        from limbeck.models.finished import weight_hash

        weights = None if probe is None else probe.weight.cpu().numpy().tobytes()
        columns = columns_of(encoder, self.clean.classes)
        is_usual = columns in (None, list(range(len(self.clean.classes))))
        return {
            "revision": REVISION,
            "network": encoder.facts.identity | {"weights": weight_hash(encoder.state_dict())},
            "img_size": list(encoder.facts.img_size),
            "linear": weights and blake2b(weights, digest_size=16).hexdigest(),
            **({} if is_usual else {"columns": columns}),
            "pool": self.embed.pool,
            "crop_ratio": self.embed.crop_ratio,
            "images": data_fingerprint(self.clean),
            "data": to_plain(replace(self.data, num_workers=None)),
            "corruptions": list(self.options.wanted),
            "severities": list(self.options.levels),
            "num_images": self.options.num_images,
            "root": self.options.root and str(Path(self.options.root).expanduser().resolve()),
        }

    def batches(self, img_size: int, skipped: SkippedLog) -> Iterator[tuple[Condition, Batch]]:
        """The images of all conditions in turn, the clean ones first."""
        from limbeck.data.corrupted import CLEAN, corrupted_batches
        from limbeck.data.loader import eval_batches

        shown = {
            "data": self.data,
            "img_size": img_size,
            "batch_size": self.embed.batch_size,
            "device": self.device,
            "skipped": skipped,
        }
        made = [CLEAN] if self.published else [CLEAN, *self.conditions]
        yield from corrupted_batches(self.clean, made, crop_ratio=self.embed.crop_ratio, **shown)
        for condition, source in (self.published or {}).items():
            # Whole: published images are crops already.
            for batch in eval_batches(source, crop_ratio=1.0, **shown):
                yield condition, batch

    def collect(self, hits: _Hits, name: str, who: str) -> Robustness:
        """The answers of one network."""
        import torch

        from limbeck.data.corrupted import CLEAN
        from limbeck.evaluation.robustness import ANSWERERS, Robustness

        of_condition = {
            condition: torch.cat(hits[name, who, condition])
            for condition in (CLEAN, *self.conditions)
        }
        lengths = {len(of_condition[condition]) for condition in self.conditions}
        if len(lengths) > 1:
            raise RunError(
                f"Some images below {self.options.root} can't be read; download them again."
            )
        names, levels = self.options.wanted, self.options.levels
        return Robustness(
            names=names,
            severities=levels,
            clean=of_condition[CLEAN],
            corrupted=torch.stack(
                [torch.stack([of_condition[name, s] for s in levels]) for name in names]
            ),
            how=ANSWERERS[who],
        )


_Hits = dict[tuple[str, str, "Condition"], "list[Tensor]"]


def _hits(
    asked: Mapping[str, tuple[Encoder, Mapping[str, Any]]],
    batches: Iterator[tuple[Condition, Batch]],
    options: EmbedOptions,
) -> _Hits:
    from limbeck.evaluation.embed import embed
    from limbeck.evaluation.scores import is_in_top

    hits: _Hits = {}
    shown: list[str] = []
    for condition, batch in batches:
        if condition[0] not in shown:
            shown.append(condition[0])
            log.info("Images under corruptions: %s.", condition[0].replace("_", " "))
        for name, (encoder, answers) in asked.items():
            said = embed(encoder, [batch], pool=options.pool)
            assert said.labels is not None
            for who, answer in answers.items():
                is_right = is_in_top(answer(said), said.labels)
                hits.setdefault((name, who, condition), []).append(is_right)
    return hits


def _answers(
    name: str, encoder: Encoder, probe: LinearProbe | None, classes: Sequence[str]
) -> dict[str, Any]:
    from limbeck.evaluation.robustness import LINEAR, OWN

    answers: dict[str, Any] = {}
    columns = columns_of(encoder, classes)
    if columns is not None and "logits" in encoder.offered_taps():
        answers[OWN] = lambda said: in_order_of(said.logits, columns)
    if probe is not None:
        answers[LINEAR] = lambda said: probe.logits(said.features.to(probe.weight.device)).cpu()
    if not answers:
        raise UserError(
            f"{name} ({encoder.facts.origin.get('source', '')}) has no classifier of the "
            f"{len(classes)} classes of these images, so it can't be asked about corrupted ones; "
            "fine-tune it first (limbeck finetune)."
        )
    return answers


def _file_of(keep: Path, request: Mapping[str, Any]) -> Path:
    digest = blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=8)
    return keep / f"corrupted_{digest.hexdigest()}.json"


def _read_kept(keep: Path | None, request: dict[str, Any]) -> dict[str, Robustness] | None:
    from limbeck.evaluation.robustness import PackedAnswers, unpack

    if keep is None:
        return None
    file = _file_of(keep, request)
    if not file.exists():
        return None
    kept: PackedAnswers = read_json(file, PackedAnswers)
    try:
        return {who: unpack(each) for who, each in kept["answers"].items()}
    except ValueError as error:
        raise UserError(f"{file}: {error}; it is damaged, so delete it.") from error


def _write_kept(
    keep: Path | None, request: dict[str, Any], answers: Mapping[str, Robustness]
) -> None:
    from limbeck.documents import write_json
    from limbeck.evaluation.robustness import pack

    if keep is None:
        return
    keep.mkdir(parents=True, exist_ok=True)
    packed = {who: pack(each) for who, each in answers.items()}
    write_json(_file_of(keep, request), {"request": request, "answers": packed})
