"""A small search that ends in a few seconds."""

from dataclasses import replace

from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions
from limbeck.methods.options import RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.options import ProbeOptions
from limbeck.recipes.study.options import LatencyOptions, LimitOptions, SearchConfig
from tests.recipes.study.test_compare import TRAIN

SEED = "vit_tiny:img_size=32:patch_size=8:embed_dim=32:depth=2:num_heads=4:mlp_ratio=2"


def search_config(images, out, teacher, /, **changes):
    """Seed, width alone and one more candidate, of two steps each."""
    values = {
        "out": out,
        "student": StudentOptions(name=SEED),
        "rounds": 1,
        "factors": ("width", "depth"),
        "limits": LimitOptions(macs="70%"),
        "latency": LatencyOptions(runtime="torch", num_turns=1),
        "teacher": TeacherOptions(source=str(teacher), precision="fp32"),
        "method": "relation",
        "relation": RelationOptions(drop_path_rate=0.0),
        "data": DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
        "optim": OptimOptions(base_lr=1e-2),
        "train": replace(TRAIN, probe_every=1_000_000),
        "probes": ProbeOptions(crop_ratio=1.0),
    }
    return SearchConfig(**values | changes)
