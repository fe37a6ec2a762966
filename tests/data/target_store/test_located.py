import pickle
from dataclasses import replace

import numpy as np
import torch

from limbeck.data.loader import VIEW_SEEDS, train_batches
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store import ArraySpec, key_hashes, open_writer
from limbeck.data.target_store.located import LocatedTargets, seed_of_view
from limbeck.data.target_store.reader import MISSING, SKIPPED, TargetReader
from limbeck.data.views import view_seed
from tests.data.images import MemorySource
from tests.data.target_store.stores import KEYS, MANIFEST, arrays_of, write_store
from tests.recipes.runs import draw_unlabelled


class Named(MemorySource):
    def __init__(self, names):
        super().__init__([None] * len(names))
        self.names = names

    def key(self, index):
        return self.names[index]


def test_records_are_those_of_the_source_s_places(tmp_path):
    reader = TargetReader(str(write_store(tmp_path / "store", skipped=KEYS[4:5])))
    names = [KEYS[9], "unknown.jpg", KEYS[4], KEYS[2]]
    found = LocatedTargets(reader, Named(names), seed=1)
    assert found.num_views == 2 and found.seed == 1
    assert [index in found for index in range(4)] == [True, False, False, True]
    assert found.rows[[1, 2]].tolist() == [MISSING, SKIPPED]
    expected = arrays_of([KEYS[2], KEYS[9]])
    for targets in (found, pickle.loads(pickle.dumps(found))):
        for view in range(2):
            arrays = targets.read([3, 0], view)
            assert arrays.keys() == expected.keys()
            for name, array in arrays.items():
                assert torch.equal(array, torch.from_numpy(expected[name][:, view].copy()))


def test_a_view_s_seed_follows_from_its_key_or_is_stored(tmp_path):
    reader = TargetReader(str(write_store(tmp_path / "store")))
    assert seed_of_view(reader, KEYS[7], 1) == view_seed(1, 1, KEYS[7])

    manifest = replace(
        MANIFEST,
        arrays={VIEW_SEEDS: ArraySpec((), "int32")},
        recipe={"seed": None, "views": "released"},
        num_parts=1,
    )
    writer = open_writer(str(tmp_path / "released"), manifest)
    seeds = np.arange(6, dtype=np.int32).reshape(3, 2)
    writer.write_part(0, key_hashes(KEYS[:3]), {VIEW_SEEDS: seeds})
    reader = TargetReader(str(tmp_path / "released"))
    assert [seed_of_view(reader, key, view) for key in KEYS[:3] for view in (0, 1)] == [*range(6)]


def test_each_image_of_a_batch_has_its_own_record_and_view(tmp_path):
    """Also where it stands for one that can't be read, and when views are used again."""
    folder = draw_unlabelled(tmp_path / "photos", count=6)
    names = [f"{index:03d}.png" for index in range(6)]
    (folder / "001.png").write_bytes(b"no image")
    reader = TargetReader(str(write_store(tmp_path / "store", names, skipped=names[3:4])))
    source = open_source(str(folder), DataOptions(), "")
    batches = train_batches(
        source, data=DataOptions(num_workers=0), views=ViewOptions(), img_size=16, run_seed=7,
        global_batch_size=6, accumulate_steps=1, rank=0, world_size=1, start_step=0,
        total_steps=4, device=torch.device("cpu"), erase_mean=(0, 0, 0), erase_std=(1, 1, 1),
        skipped=SkippedLog(None, 6, 1.0), targets=LocatedTargets(reader, source, seed=1),
    )  # fmt: skip
    for epoch, batch in enumerate(batches):
        assert sorted(set(batch.keys)) == [names[index] for index in (0, 2, 4, 5)]
        view = epoch % 2
        assert batch.view_seeds.tolist() == [view_seed(1, view, key) for key in batch.keys]
        for name, array in arrays_of(batch.keys).items():
            assert torch.equal(batch.targets[name], torch.from_numpy(array[:, view].copy()))
