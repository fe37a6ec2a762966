"""A section of options as a run of ``limbeck finetune``."""

from pathlib import Path

from limbeck.engine.options import OptimOptions
from limbeck.recipes.study.options import TuningOptions
from limbeck.recipes.study.tuning import tuning_run, without_layer_decay


def test_a_run_has_what_its_section_says_and_what_is_to_differ():
    section = TuningOptions(drop_path_rate=0.3, global_pool="token")
    run = tuning_run(section, student="vit_tiny", out=Path("there"), global_pool="avg")
    assert (run.student, run.out, run.drop_path_rate) == ("vit_tiny", Path("there"), 0.3)
    assert run.global_pool == "avg" and run.train == section.train and run.mix == section.mix


def test_from_scratch_all_that_hangs_on_layer_decay_is_off():
    optim = OptimOptions(base_lr=0.5, layer_decay=0.75, head_lr_scale=0.7)
    assert without_layer_decay(optim) == OptimOptions(base_lr=0.5)
