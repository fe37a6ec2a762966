"""A store of targets in a run: whether it fits the run's views, images and libraries."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck.config import to_plain
from limbeck.data.options import (
    CropOptions,
    DataOptions,
    ReleasedViews,
    TargetsOptions,
    ViewOptions,
)
from limbeck.data.released_views import FRAME
from limbeck.data.source import BadImage, Source
from limbeck.data.target_store import Manifest, StoreWriter
from limbeck.data.target_store.located import LocatedTargets, seed_of_view
from limbeck.data.target_store.reader import TargetReader
from limbeck.data.view_batches import view_fingerprint
from limbeck.data.views import view_seed
from limbeck.documents import as_read, flat
from limbeck.engine.distributed import gather
from limbeck.errors import UserError
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.lineage import versions
from limbeck.recipes.run.networks import Networks, build_networks
from limbeck.recipes.run.options import DistillConfig

log = logging.getLogger("limbeck")

NUM_FINGERPRINTS = 16  # views that are made again before a run: a second or so
NUM_NAMED = 5  # missing images that an error names
NOISE = ("erase_mean", "erase_std")
"""Of a recipe: what a training takes over from its store."""
VIEW_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Whose versions can change a view's pixels."""
OF_MAPS = ("has_maps", "has_boxes", "level_dims", "level_strides")


def stored_facts(facts: EncoderFacts) -> dict[str, Any]:
    """What a store says of its teacher, which never answers with maps or boxes; plain data."""
    return {name: value for name, value in asdict(facts).items() if name not in OF_MAPS}


def released_recipe() -> dict[str, Any]:
    """The view recipe of a store that was converted from the released layout: plain data."""
    return {"seed": None, "views": "released"}


def stored_views(config: DistillConfig, nets: Networks) -> ViewOptions | ReleasedViews:
    """The views of a training from a store. Raises UserError for options without effect on them."""
    own = the_view(config, nets)
    if nets.reader is None or nets.reader.manifest.recipe != released_recipe():
        return own
    default = type(nets.method_options)().views(CropOptions())[0]
    changed = [name for name, value in vars(own).items() if value != getattr(default, name)]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: no effect with {config.targets.source}, whose views are those "
            "of the released code; leave out what changes them."
        )
    return ReleasedViews()


def open_networks(
    config: DistillConfig, device: torch.device, load: Callable[..., Encoder] | None = None
) -> Networks:
    """The networks of a pre-training, whose teacher may be a store; raises as both do."""
    options = config.targets
    reader = None if options.source is None else open_store(options)
    return build_networks(config, device, load, reader)


def open_store(options: TargetsOptions) -> TargetReader:
    """The store of a training, with its checksums compared: each process of a machine its share.

    By machine, because each may have a copy of its own. Raises UserError, on every process, for
    what is wrong on any.
    """
    assert options.source is not None
    reader, failure = None, None
    try:
        reader = TargetReader(
            options.source,
            # As torchrun tells them.
            rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            cache=options.cache and Path(options.cache).expanduser(),
        )
    except UserError as error:
        failure = error
    failures = [each for each in gather(failure) if each is not None]
    if failures:
        raise failures[0]
    assert reader is not None
    return reader


def the_view(config: DistillConfig, nets: Networks) -> ViewOptions:
    """The one view of each image that a method has which can be stored; else raises UserError."""
    views = nets.method_options.views(config.crop)
    if len(views) > 1 or nets.method_options.local_views(config.crop):
        raise UserError(
            f"The method {config.method} looks at several views of an image at once, for which "
            "nothing can be stored; choose another method."
        )
    return views[0]


def view_recipe(
    views: ViewOptions | ReleasedViews, student: EncoderFacts, seed: int | None
) -> dict[str, Any]:
    """All that the views of a run follow from, but keys and images: plain data.

    Released views follow from seeds in the records, and are the same in every size.
    """
    if isinstance(views, ReleasedViews):
        return released_recipe()
    recipe = {"seed": seed, "img_size": student.img_size[0], "views": to_plain(views)}
    if views.erase_prob:  # the noise is drawn as it is after normalisation
        recipe |= {"erase_mean": list(student.mean), "erase_std": list(student.std)}
    return recipe


def locate(
    reader: TargetReader, config: DistillConfig, nets: Networks, images: Images
) -> LocatedTargets:
    """The store's records for the training images of a run.

    Raises UserError where the store was made with another view recipe, lacks images, or where
    views made here and now have other pixels. These may be of held-out images, too.
    """
    manifest = reader.manifest
    seed = manifest.recipe["seed"]
    views = stored_views(config, nets)
    own = view_recipe(views, nets.student.facts, seed)
    own |= {name: manifest.recipe[name] for name in NOISE if name in own.keys() & manifest.recipe}
    check_recipe(manifest.recipe, own)
    found = LocatedTargets(reader, images.train, seed)
    check_coverage(found, images.train)
    check_pixels(reader, images.whole, config.data, views)
    epochs = config.train.epochs
    log.info(
        "Targets of %s, %d view%s of each image (%s)%s.",
        config.targets.source, found.num_views, "" if found.num_views == 1 else "s",
        "the released ones" if seed is None else f"seed {seed}",
        f"; each is used about {epochs / found.num_views:.3g} times in {epochs:g} epochs"
        if epochs > found.num_views else "",
    )  # fmt: skip
    return found


def check_recipe(stored: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise UserError, with what differs, unless a run's views are the store's."""
    theirs, ours = flat(stored), flat(as_read(own))
    differing = [
        f"{name} is {ours.get(name)} here and {theirs.get(name)} in the store"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise UserError(
            f"The stored targets are for other views: {'; '.join(differing)}. Set the same "
            "options, or store targets for these views."
        )


def check_coverage(targets: LocatedTargets, source: Source) -> None:
    """Raise UserError, with some of their names, where images have no targets."""
    missing = (targets.rows == -1).nonzero().flatten().tolist()
    if missing:
        named = ", ".join(source.key(index) for index in missing[:NUM_NAMED])
        raise UserError(
            f"{len(missing):,} of {len(source):,} images have no stored targets: {named}"
            f"{', ...' if len(missing) > NUM_NAMED else ''}. Fill them in with limbeck "
            "store-targets --resume and the options it was made with."
        )


def check_pixels(
    reader: TargetReader, source: Source, data: DataOptions, views: ViewOptions | ReleasedViews
) -> None:
    """Raise UserError where views that the store has fingerprints of have other pixels here.

    Also where there is none of their images: then nothing tells others of the same names.
    """
    made = list(remade_fingerprints(reader, source, data, views))
    _check_same(made, reader.manifest)
    if not made:
        named = list(dict.fromkeys(each["key"] for each in reader.fingerprints()))
        raise UserError(
            "The store has fingerprints of none of these images, so nothing tells whether they are "
            f"those that it is of; have some of {', '.join(named[:NUM_NAMED])} among them, or "
            "store targets for them."
        )


def check_before_writing(
    writer: StoreWriter, source: Source, data: DataOptions, views: ViewOptions, img_size: int
) -> None:
    """Raise UserError where what is to be added to a store would not go with what is there."""
    seed = writer.manifest.recipe["seed"]
    made = _remade(
        writer.fingerprints(), source, lambda key, view: view_seed(seed, view, key),
        NUM_FINGERPRINTS, data, views, img_size,
    )  # fmt: skip
    _check_same(made, writer.manifest)


def _check_same(made: Iterable[tuple[str, int, str, str]], manifest: Manifest) -> None:
    for key, view, was, now in made:
        if was != now:
            raise UserError(
                f"View {view} of {key} has other pixels here than when its targets were stored: "
                f"another image of that name, or another library ({drift(manifest)}). Store the "
                "targets anew, or install those versions."
            )


def remade_fingerprints(
    reader: TargetReader,
    source: Source,
    data: DataOptions,
    views: ViewOptions | ReleasedViews,
    limit: int | None = NUM_FINGERPRINTS,
) -> Iterator[tuple[str, int, str, str]]:
    """(key, view, stored fingerprint, the one made here) of views whose image is at hand.

    Of about ``limit`` of them, spread over the images; of all where it is None.
    """
    img_size = reader.manifest.recipe.get("img_size", FRAME)
    seed_of = partial(seed_of_view, reader)
    return _remade(reader.fingerprints(), source, seed_of, limit, data, views, img_size)


def _remade(
    stored: list[dict[str, Any]],
    source: Source,
    seed_of: Callable[[str, int], int],
    limit: int | None,
    data: DataOptions,
    views: ViewOptions | ReleasedViews,
    img_size: int,
) -> Iterator[tuple[str, int, str, str]]:
    wanted: dict[str, list[dict[str, Any]]] = {}
    for each in stored:
        wanted.setdefault(each["key"], []).append(each)
    at_hand = [(i, each) for i in range(len(source)) for each in wanted.get(source.key(i), ())]
    for index, one in at_hand[:: max(1, len(at_hand) // limit) if limit else 1]:
        try:
            now = view_fingerprint(
                source, index, data=data, views=views, img_size=img_size,
                seed=seed_of(one["key"], one["view"]),
            )  # fmt: skip
        except BadImage:
            continue  # the loader says what is wrong with it
        yield one["key"], one["view"], one["pixels"], now


def drift(manifest: Manifest) -> str:
    """Which libraries are other than those that a store was begun with, in words."""
    then, now = manifest.versions, versions()
    changed = [
        f"{name} {then.get(name)} then, {now[name]} now"
        for name in VIEW_LIBRARIES
        if then.get(name) != now[name]
    ]
    return "; ".join(changed) or "all of the versions that were written down are the same"
