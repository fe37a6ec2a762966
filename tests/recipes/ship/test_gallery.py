"""A gallery's vectors: made once, and again only of what has changed."""

import os
import shutil

import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.data.source import BadImage, Subset
from limbeck.errors import UserError
from limbeck.models.finished import load_finished
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.run.probes import embed_source
from limbeck.recipes.ship import gallery as module
from limbeck.recipes.ship.gallery import open_gallery
from limbeck.recipes.ship.places import open_files

SHOWN = EmbedOptions(crop_ratio=1.0, batch_size=5)


@pytest.fixture
def photos(images, tmp_path):
    for index in range(12):
        name = f"{index:02d}.png"
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(images / "red" / f"0{name}", tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def shown(monkeypatch):
    """The keys of what is embedded, in order."""
    keys, real = [], module.embed

    def embed(encoder, batches, **more):
        keys.extend(key for batch in batches for key in batch.keys)
        return real(encoder, batches, **more)

    monkeypatch.setattr(module, "embed", embed)
    return keys


def opened(photos, student, options=SHOWN, precision="fp32"):
    data, network = DataOptions(num_workers=0), load_finished(student)
    return open_gallery(
        network, open_files((str(photos),)), options, data, precision, photos.parent / "kept"
    )


def test_vectors_are_those_of_embed_and_are_made_once(photos, student, shown):
    gallery, digest = opened(photos, student)
    source, data = open_files((str(photos),)), DataOptions(num_workers=0)
    own = embed_source(
        load_finished(student), source, SHOWN, data, torch.device("cpu"),
        module.SkippedLog(None, 12, 1.0),
    )  # fmt: skip
    assert gallery.keys == list(own.keys) and torch.equal(gallery.features, own.features)
    assert len(shown) == 12
    again, same = opened(photos, student)
    assert len(shown) == 12 and same == digest
    assert torch.equal(again.features, gallery.features)


def test_what_is_new_changed_gone_or_bad(photos, student, images, shown):
    before, digest = opened(photos, student)
    del shown[:]
    shutil.copy(images / "blue" / "000.png", photos / "03.png")
    os.utime(photos / "03.png", ns=(1, 1))
    shutil.copy(images / "blue" / "001.png", photos / "new.png")
    (photos / "05.png").unlink()
    (photos / "07.png").write_bytes(b"broken")
    after, other = opened(photos, student)
    assert sorted(shown) == ["03.png", "new.png"] and other != digest
    assert set(after.keys) == {*before.keys, "new.png"} - {"05.png", "07.png"}
    old, new = before.keys.index("03.png"), after.keys.index("03.png")
    assert not torch.equal(before.features[old], after.features[new])
    assert "07.png" in (photos.parent / "kept" / "skipped.jsonl").read_text()


def test_other_options_and_damage_are_not_taken_for_it(photos, student, shown):
    opened(photos, student)
    opened(photos, student, EmbedOptions(crop_ratio=0.5, batch_size=5))
    assert len(shown) == 24
    opened(photos, student, EmbedOptions(crop_ratio=0.5, batch_size=7))
    assert len(shown) == 24
    (photos.parent / "kept" / "gallery.safetensors").write_bytes(b"torn")
    opened(photos, student)
    assert len(shown) == 36


def test_after_ctrl_c_what_is_done_stays_done(photos, student, shown, monkeypatch):
    real, count = module.embed, []

    def stops(*given, **more):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(module, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        opened(photos, student)
    assert shown == [f"{index:02d}.png" for index in range(5)]
    assert len(opened(photos, student)[0].keys) == 12
    assert len(shown) == 12


def test_images_of_other_sources_are_told_by_their_content(photos):
    source = Subset(open_files((str(photos),)), [0, 1])
    first, second = (module._mark(source, index) for index in range(2))
    assert len(first) == 32 and first != second and first == module._mark(source, 0)
    source.read = lambda index: (_ for _ in ()).throw(BadImage("gone"))
    assert module._mark(source, 0) == ""


def test_a_gallery_without_a_readable_image(photos, student):
    for file in photos.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(UserError, match="Not one image of the gallery"):
        opened(photos, student)
