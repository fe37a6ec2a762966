import pickle

import numpy as np

from limbeck.data.scenes.open import open_scenes
from limbeck.data.scenes.options import SceneOptions
from tests.data.scenes import sets


def test_scenes_can_be_sent_to_a_worker(tmp_path):
    for write in (sets.parallel, sets.shards, sets.table, lambda r: sets.coco(r, sets.outlines)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        scenes = open_scenes(str(write(folder)), SceneOptions())
        scenes.read_scene(0)
        sent = pickle.loads(pickle.dumps(scenes))
        assert sent.key(1) == scenes.key(1) and sent.read(1) == scenes.read(1)
        assert np.array_equal(sent.read_mask(1), scenes.read_mask(1))
