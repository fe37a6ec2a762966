"""All views of images at once are those that a training would make, one in each epoch."""

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import view_makers
from limbeck.data.loader import train_batches
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.view_batches import view_batches, view_fingerprint, view_fingerprints
from limbeck.data.views import view_seed
from tests.recipes.runs import draw_unlabelled

CPU = torch.device("cpu")
VIEWS = ViewOptions(scale=(0.3, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5)
NOISE = {"erase_mean": (0.5, 0.4, 0.3), "erase_std": (0.2, 0.3, 0.4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = draw_unlabelled(tmp_path_factory.mktemp("views") / "photos", count=6)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def source(folder):
    return open_source(str(folder), DataOptions(), "")


def batches_of(source, requests, num_workers=0):
    return view_batches(
        source,
        requests,
        data=DataOptions(num_workers=num_workers),
        views=VIEWS,
        img_size=16,
        seed=5,
        world_size=1,
        device=CPU,
        **NOISE,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_they_are_those_of_the_epochs(source, num_workers):
    indices = [index for index in range(len(source)) if source.key(index) != "bad.png"]
    requests = [(range(3), indices[:4]), (range(1, 2), indices[4:])]
    stored = {}
    for batch, skipped in batches_of(source, requests, num_workers):
        assert skipped == () and batch.num_views == 1
        for row, key in enumerate(batch.keys):
            stored.setdefault(key, []).append((batch.view_seeds[row].item(), batch.images[row]))
    assert {key: len(views) for key, views in stored.items()} == {
        source.key(index): 3 if index in indices[:4] else 1 for index in indices
    }
    trained = train_batches(
        source,
        data=DataOptions(num_workers=0, max_bad_ratio=1.0),
        views=VIEWS,
        img_size=16,
        run_seed=5,
        global_batch_size=7,
        accumulate_steps=1,
        rank=0,
        world_size=1,
        start_step=0,
        total_steps=3,
        device=CPU,
        skipped=SkippedLog(None, 7, 1.0),
        **NOISE,
    )
    num_equal = 0
    for epoch, batch in enumerate(trained):
        for row, key in enumerate(batch.keys):
            views = stored[key]
            place = epoch if len(views) == 3 else epoch - 1
            if 0 <= place < len(views):
                assert views[place][0] == batch.view_seeds[row].item()
                assert torch.equal(views[place][1], batch.images[row])
                num_equal += 1
    assert num_equal >= 12


def test_what_can_not_be_read_is_left_out_with_its_reason(source):
    bad = next(index for index in range(len(source)) if source.key(index) == "bad.png")
    other = (bad + 1) % len(source)
    ((batch, skipped),) = batches_of(source, [(range(2), [bad, other])])
    assert batch.keys == (source.key(other),) * 2
    assert [key for key, _ in skipped] == ["bad.png"] and skipped[0][1]
    ((batch, skipped),) = batches_of(source, [(range(2), [bad])])
    assert batch.keys == () and len(skipped) == 1


def test_a_fingerprint_tells_views_and_recipes_apart(source):
    def fingerprint(index=1, view=0, seed=5, **changes):
        views = ViewOptions(**vars(VIEWS) | changes)
        own_seed = view_seed(seed, view, source.key(index))
        return view_fingerprint(
            source, index, data=DataOptions(), views=views, img_size=16, seed=own_seed
        )

    own = fingerprint()
    assert own == fingerprint() and len(own) == 32
    others = [fingerprint(view=1), fingerprint(seed=6), fingerprint(scale=(0.9, 1.0))]
    assert len({own, *others, fingerprint(index=2)}) == 5
    erased = {fingerprint(view=view, erase_prob=1.0) for view in range(4)}
    assert not erased & {fingerprint(view=view, erase_prob=0.0) for view in range(4)}
    bad = next(index for index in range(len(source)) if source.key(index) == "bad.png")
    with pytest.raises(BadImage):
        fingerprint(index=bad)


def test_a_fingerprint_tells_other_noise_apart(source, monkeypatch):
    def fingerprint():
        views = ViewOptions(erase_prob=1.0)
        return view_fingerprint(source, 0, data=DataOptions(), views=views, img_size=16, seed=1)

    own = fingerprint()
    monkeypatch.setattr(view_makers, "view_noise", lambda seed, shape: np.zeros(shape, np.float32))
    assert fingerprint() != own


def test_fingerprints_leave_out_what_can_not_be_read(source):
    bad = next(index for index in range(len(source)) if source.key(index) == "bad.png")
    good = (bad + 1) % len(source)
    made = view_fingerprints(
        source, [(bad, 0), (good, 2)], lambda index, view: 10 * index + view,
        data=DataOptions(), views=VIEWS, img_size=16,
    )  # fmt: skip
    pixels = view_fingerprint(
        source, good, data=DataOptions(), views=VIEWS, img_size=16, seed=10 * good + 2
    )
    assert made == [{"key": source.key(good), "view": 2, "pixels": pixels}]


def test_odd_images_are_the_same_when_stored_and_when_trained_on(tmp_path):
    """Turned by EXIF, of 16 bits, transparent, tiny: made to views in one way."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 2**16, (20, 30), dtype=np.uint16)).save(tmp_path / "deep.png")
    photo.convert("RGBA").resize((5, 7)).save(tmp_path / "clear.png")
    photo.resize((1, 1)).save(tmp_path / "tiny.png")
    source = open_source(str(tmp_path), DataOptions(), "")
    ((stored, skipped),) = batches_of(source, [(range(1), [0, 1, 2, 3])])
    assert skipped == () and len(stored.keys) == 4
    (trained,) = train_batches(
        source, data=DataOptions(num_workers=0), views=VIEWS, img_size=16, run_seed=5,
        global_batch_size=4, accumulate_steps=1, rank=0, world_size=1, start_step=0,
        total_steps=1, device=CPU, skipped=SkippedLog(None, 4, 1.0), **NOISE,
    )  # fmt: skip
    for row, key in enumerate(trained.keys):
        assert torch.equal(trained.images[row], stored.images[stored.keys.index(key)])


def test_the_order_of_requests_is_kept(source):
    requests = [(range(1), [index]) for index in (3, 1, 2)]
    keys = [batch.keys[0] for batch, _ in batches_of(source, requests, num_workers=2)]
    assert keys == [source.key(index) for index in (3, 1, 2)]
    assert np.unique(keys).size == 3
