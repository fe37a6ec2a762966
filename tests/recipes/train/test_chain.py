"""Chains: each student teaches the next; refused early, continued anywhere, replaced on demand."""

import gc
import json
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.config import from_plain, read_preset
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.methods.options import FeatureOptions, ReconstructionOptions, RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.decoder import load_decoder
from limbeck.recipes.look.doctor import DoctorConfig, doctor
from limbeck.recipes.look.doctor import report as report_diagnosis
from limbeck.recipes.run import train as training
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.targets import reading
from limbeck.recipes.train.chain import rehearse, split_chain, stage_dirs
from limbeck.recipes.train.distill import check, distill, report
from tests.recipes.runs import distill_config, metrics_of, snapshot, teacher_config, weights_of

FIRST = "vit_small:embed_dim=24:depth=2:num_heads=3"
SECOND = "vit_tiny:embed-dim=16:depth=2:num_heads=2"
THIRD = "vit_tiny:embed_dim=8:depth=1:num_heads=1"
SIZES = StudentOptions(img_size=32, patch_size=8)
RANKS = Ranks(device=torch.device("cpu"))


def chain_config(images, out, teacher, /, chain=f"{FIRST}, {SECOND}", **changes):
    """Two stages of eight steps."""
    values = {"chain": chain, "student": SIZES} | changes
    return distill_config(images, out, teacher, **values)


@pytest.fixture(scope="module")
def chain(images, teacher, tmp_path_factory):
    """A finished chain of two stages; nothing may write into it."""
    out = tmp_path_factory.mktemp("chain") / "run"
    return distill(chain_config(images, out, teacher))


@pytest.fixture
def copy(chain, tmp_path):
    """A copy of it that may be written into."""
    return shutil.copytree(chain, tmp_path / "moved")


# --- What the stages are -------------------------------------------------------------------------


def test_every_stage_is_a_config_of_its_own(images, teacher, tmp_path):
    config = chain_config(
        images,
        tmp_path,
        teacher,
        chain="vit_base:img_size=64,vit_small,vit_tiny:mlp_ratio=2.5",
        teacher=TeacherOptions(source=str(teacher), img_size=64, num_heads=4, precision="fp32"),
        relation=RelationOptions(teacher_block=1, temperature=2.0),
    )
    first, second, third = split_chain(config)
    assert [stage.out.name for stage in (first, second, third)] == [
        "1_vit_base", "2_vit_small", "3_vit_tiny",
    ]  # fmt: skip
    assert [stage.chain for stage in (first, second, third)] == ["", "", ""]
    assert first.student == StudentOptions(name="vit_base", img_size=64, patch_size=8)
    assert second.student == replace(SIZES, name="vit_small")
    assert third.student == replace(SIZES, name="vit_tiny", mlp_ratio=2.5)
    assert first.teacher == config.teacher
    assert second.teacher == TeacherOptions(source=str(first.out), precision="fp32")
    assert third.teacher == TeacherOptions(source=str(second.out), precision="fp32")
    assert [stage.relation.teacher_block for stage in (first, second, third)] == [1, -1, -1]
    assert {stage.relation.temperature for stage in (first, second, third)} == {2.0}
    assert {stage.train for stage in (first, second, third)} == {config.train}


def test_a_later_teacher_s_block_is_the_one_that_was_trained(images, teacher, tmp_path):
    options = FeatureOptions(teacher_block=2, student_block=0)
    config = chain_config(images, tmp_path, teacher, method="feature", feature=options)
    assert [stage.feature.teacher_block for stage in split_chain(config)] == [2, 0]


def test_a_method_of_ones_own_with_the_same_options_does_so_too(images, teacher, tmp_path):
    config = chain_config(
        images, tmp_path, teacher, method="limbeck.methods.relation:Relation",
        relation=RelationOptions(), method_options=("teacher_block = 2", "student_block=0"),
    )  # fmt: skip
    stages = split_chain(config)
    assert stages[0].method_options == config.method_options
    assert stages[1].method_options == ("student_block=0", "teacher_block=0")


def test_a_config_without_a_chain_is_its_only_stage(images, teacher, tmp_path):
    config = distill_config(images, tmp_path, teacher)
    assert split_chain(config) == [config]


@pytest.mark.parametrize(
    ("preset", "folders", "teacher_blocks", "num_heads"),
    [
        (
            "tinymim_chain",
            ["1_vit_base", "2_vit_small", "3_vit_tiny"],
            [17, -1, -1],
            [None, None, 6],
        ),
        ("photos_chain", ["1_vit_small", "2_vit_tiny"], [-1, -1], [None, None]),
    ],
)
def test_the_stages_of_the_presets(preset, folders, teacher_blocks, num_heads):
    config = from_plain(DistillConfig, read_preset(preset, "distill"), preset)
    stages = split_chain(config)
    assert [stage.out.name for stage in stages] == folders
    assert [stage.relation.teacher_block for stage in stages] == teacher_blocks
    assert [stage.student.num_heads for stage in stages] == num_heads
    assert {stage.train for stage in stages} == {config.train}


def test_folders_are_numbered_so_that_a_name_can_come_twice():
    names = [folder.name for folder in stage_dirs(Path("run"), "vit_tiny, vit_tiny:depth=2")]
    assert names == ["1_vit_tiny", "2_vit_tiny"]


# --- What comes out ------------------------------------------------------------------------------


def test_the_last_student_is_in_the_chain_s_own_folder(chain):
    first, last = chain / "1_vit_small", chain / "2_vit_tiny"
    assert weights_of(chain) == weights_of(last)
    assert (chain / "student.json").read_bytes() == (last / "student.json").read_bytes()
    assert limbeck.load(chain).facts.embed_dim == 16
    assert limbeck.load(first).facts.embed_dim == 24
    for run in (first, last):
        assert [record["step"] for record in metrics_of(run)[0]] == list(range(1, 9))
    assert {entry.name for entry in chain.iterdir()} == {
        *("1_vit_small", "2_vit_tiny", "student.safetensors", "student.json"),
        *("config.json", "fingerprint.json", "finished.json", ".lock"),
    }


def test_each_student_was_taught_by_the_one_before(chain, teacher):
    first, last = chain / "1_vit_small", chain / "2_vit_tiny"
    for run, taught_by in ((first, teacher), (last, first)):
        record = json.loads((run / "student.json").read_text())["teacher"]
        assert record["weight_hash"] == limbeck.load(taught_by).facts.origin["weight_hash"]


def test_the_head_count_of_the_target_block_goes_down_the_chain(chain):
    # 3 and 2 heads of their own; a table of head counts by size could not pair them.
    assert limbeck.load(chain / "1_vit_small").facts.num_heads == (3, 4)
    assert limbeck.load(chain).facts.num_heads == (2, 4)


def test_a_chain_makes_what_its_stages_make_one_by_one(chain, images, teacher, tmp_path):
    by_hand = teacher
    for stage in split_chain(chain_config(images, chain, teacher)):
        source = TeacherOptions(source=str(by_hand))
        by_hand = distill(replace(stage, out=tmp_path / stage.out.name, teacher=source))
        assert weights_of(by_hand) == weights_of(stage.out)


def test_the_report_says_where_the_stages_are(chain):
    said = report(chain)
    assert f"Stage 1_vit_small is in {chain / '1_vit_small'}.\n" in said
    assert f"Stage 2_vit_tiny is in {chain / '2_vit_tiny'}.\n" in said
    assert f"limbeck finetune --student {chain} " in said


def test_the_last_stage_s_keepsakes_come_along(images, teacher, tmp_path):
    relation = RelationOptions(
        drop_path_rate=0.0, mask_ratio=0.5, reconstruction=ReconstructionOptions(weight=0.1)
    )
    config = chain_config(images, tmp_path / "run", teacher, chain=FIRST, relation=relation)
    run = distill(config)
    assert load_decoder(run).grid == (4, 4)
    stage = (run / "1_vit_small" / "decoder.safetensors").read_bytes()
    assert (run / "decoder.safetensors").read_bytes() == stage


def test_a_chain_of_one(images, teacher, student, tmp_path):
    run = distill(chain_config(images, tmp_path / "run", teacher, chain=FIRST))
    assert weights_of(run) == weights_of(run / "1_vit_small")
    # vit_small and vit_tiny differ in nothing that is not stated here.
    assert weights_of(run) == weights_of(student)


# --- Again, continued, replaced ------------------------------------------------------------------


def test_the_same_again_changes_nothing(chain, images, teacher, caplog):
    caplog.set_level("INFO")
    before = snapshot(chain)
    assert distill(chain_config(images, chain, teacher)) == chain
    assert snapshot(chain) == before
    assert f"{chain} is finished already; nothing to do." in caplog.text


def test_killed_before_the_last_student_was_copied(copy, chain, images, teacher, caplog):
    caplog.set_level("INFO")
    for name in ("finished.json", "student.json", "student.safetensors"):
        (copy / name).unlink()
    with pytest.raises(
        UserError, match="no student of its own yet; name one of .*1_vit_small.* has not finished"
    ):
        limbeck.load_encoder(copy)
    stages = stage_dirs(copy, "vit_small,vit_tiny")
    before = [snapshot(stage) for stage in stages]
    distill(chain_config(images, copy, teacher))
    assert [snapshot(stage) for stage in stages] == before
    for number, stage in enumerate(stages, 1):
        assert f"Stage {number} of 2" in caplog.text
        assert f"{stage} is finished already; nothing to do." in caplog.text
    assert weights_of(copy) == weights_of(chain)


def test_killed_between_two_stages(copy, chain, images, teacher):
    for name in ("finished.json", "student.json", "student.safetensors"):
        (copy / name).unlink()
    shutil.rmtree(copy / "2_vit_tiny")
    before = snapshot(copy / "1_vit_small")
    distill(chain_config(images, copy, teacher))
    assert snapshot(copy / "1_vit_small") == before
    assert weights_of(copy) == weights_of(chain)


def test_a_changed_option_is_another_chain(copy, images, teacher):
    before = snapshot(copy)
    config = chain_config(images, copy, teacher)
    with pytest.raises(UserError, match="moved holds another run: seed is 0 there and 1 here"):
        distill(replace(config, seed=1))
    plain = distill_config(images, copy, teacher)
    with pytest.raises(UserError, match='chain is ".*" there and "" here'):
        distill(plain)
    mark = (copy / "finished.json").read_bytes()
    (copy / "finished.json").unlink()  # a chain that is under way is protected, too
    with pytest.raises(UserError, match="moved holds another run: seed is 0 there and 1 here"):
        distill(replace(config, seed=1))
    (copy / "finished.json").write_bytes(mark)
    assert {name: text for name, (_, text) in snapshot(copy).items()} == {
        name: text for name, (_, text) in before.items()
    }


def test_another_first_teacher_is_another_chain(copy, images, teacher, tmp_path):
    other = distill(replace(teacher_config(images, tmp_path / "teacher"), seed=1))
    with pytest.raises(UserError, match="holds another run: fingerprint of teacher.weights is"):
        distill(chain_config(images, copy, other))


def test_overwrite_replaces_every_stage(copy, images, teacher):
    stages = stage_dirs(copy, "vit_small,vit_tiny")
    before = [weights_of(run) for run in (*stages, copy)]
    distill(chain_config(images, copy, teacher, seed=1, overwrite=True))
    after = [weights_of(run) for run in (*stages, copy)]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert after[-1] == after[-2]


def test_a_chain_can_be_made_longer(copy, images, teacher):
    stages = stage_dirs(copy, "vit_small,vit_tiny")
    before = [snapshot(stage) for stage in stages]
    longer = chain_config(images, copy, teacher, chain=f"{FIRST}, {SECOND}, {THIRD}")
    with pytest.raises(UserError, match="chain is"):
        distill(longer)
    distill(replace(longer, overwrite=True))
    assert [snapshot(stage) for stage in stages] == before
    assert limbeck.load(copy).facts.num_heads == (4,)
    assert weights_of(copy) == weights_of(copy / "3_vit_tiny")


def test_overwrite_is_needed_once(copy, images, teacher, monkeypatch):
    """Stages of the chain before are gone before the first one trains."""
    stages = stage_dirs(copy, "vit_small,vit_tiny")
    before = [weights_of(stage) for stage in stages]
    real = training.train

    def stopped(plan, ranks):
        if plan.config.out == stages[1]:
            raise KeyboardInterrupt
        return real(plan, ranks)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        distill(chain_config(images, copy, teacher, seed=1, overwrite=True))
    monkeypatch.setattr(training, "train", real)
    distill(chain_config(images, copy, teacher, seed=1))
    assert all(old != weights_of(stage) for old, stage in zip(before, stages, strict=True))


def test_a_later_stage_that_does_not_fit_is_told_before_the_first_trains(copy, images, teacher):
    (copy / "finished.json").unlink()
    first, second = stage_dirs(copy, "vit_small,vit_tiny")
    shutil.rmtree(first)  # what the second one was taught by
    with pytest.raises(UserError, match='2_vit_tiny holds another run.* "not trained yet" here'):
        distill(chain_config(images, copy, teacher))
    assert not first.exists() and weights_of(second)
    distill(chain_config(images, copy, teacher, overwrite=True))
    assert weights_of(copy) == weights_of(second)


def test_a_later_stage_that_fits_goes_on_at_another_image_size(images, teacher, tmp_path):
    config = chain_config(images, tmp_path, teacher, chain=f"{FIRST},{SECOND}:img_size=48")
    run = distill(config)
    (run / "finished.json").unlink()
    before = snapshot(run / "2_vit_tiny")
    # Spaces mean nothing.
    distill(replace(config, chain=config.chain.replace(",", " , ")))
    assert snapshot(run / "2_vit_tiny") == before


def test_a_folder_that_is_no_run_is_left_alone(images, teacher, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty and holds no run \(thesis.txt\)"):
        distill(chain_config(images, tmp_path, teacher, overwrite=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain": "vit_base,vit_smal"}, "Did you mean 'vit_small'?"),
        ({"chain": "vit_base,,vit_tiny"}, "--chain has a stage without a name"),
        ({"chain": " "}, "--chain has a stage without a name"),
        ({"chain": "vit_tiny:num_hedas=6"}, "no option 'num_hedas'. Did you mean 'num_heads'?"),
        ({"chain": "vit_tiny:weights=a.pth"}, "there is no option 'weights'."),
        ({"chain": "vit_tiny:num_heads=six"}, "chain stage 'vit_tiny:num_heads=six': num_heads ="),
        ({"chain": "vit_tiny:depth=0"}, "greater than 0"),
        ({"chain": "vit_tiny:depth=2:depth=3"}, "depth is stated twice"),
        ({"chain": "timm:vit_tiny"}, "'vit_tiny' is not OPTION=VALUE"),
        (
            {"chain": "vit_tiny_patch16_224.augreg_in21k"},
            "a stage starts from fresh weights; write 'vit_tiny_patch16_224'.",
        ),
        (
            {"chain": "vit_tiny,vit_tiny:embed_dim=20:num_heads=3"},
            "chain stage 'vit_tiny:embed_dim=20:num_heads=3': student.embed_dim 20 does not divide",
        ),
        ({"student": StudentOptions(depth=2)}, "student.depth has no effect with --chain"),
        ({"student": StudentOptions(name="vit_base")}, "student.name has no effect with --chain"),
        ({"student": StudentOptions(weights="timm:vit_tiny")}, "student.weights has no effect"),
        ({"teacher": TeacherOptions()}, "A chain needs its first teacher"),
        (
            {"teacher": TeacherOptions(), "method": "masked-pixel", "relation": RelationOptions()},
            "A chain hands a teacher on, and the method masked-pixel has none",
        ),
    ],
)
def test_what_check_refuses(images, teacher, tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        check(chain_config(images, tmp_path / "run", teacher, **changes))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_same_refusals_need_no_torch(images, teacher):
    code = (
        "import sys\n"
        "from limbeck.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('torch' in sys.modules)"
    )
    words = ["distill", "--data", str(images), "--teacher", str(teacher), "--chain", "vit_tyni"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "There is no vision Transformer 'vit_tyni'" in done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        # The first stage fits; the heads that it hands on do not divide the second.
        (
            f"{FIRST},vit_tiny:embed_dim=12:num_heads=3:depth=2",
            "Stage 2_vit_tiny: Block 1 .*12 wide, which does not divide into 8 heads",
        ),
        (f"{FIRST},{THIRD}", "Stage 2_vit_tiny: The student has 1 blocks .* no block 1"),
    ],
)
def test_stages_that_do_not_fit_are_told_before_the_first_trains(
    images, teacher, tmp_path, chain, message
):
    changes = {
        "teacher": TeacherOptions(source=str(teacher), num_heads=8),
        "relation": RelationOptions(student_block=1),
    }
    with pytest.raises(UserError, match=message):
        distill(chain_config(images, tmp_path / "run", teacher, chain=chain, **changes))
    assert not (tmp_path / "run").exists()


# --- The rehearsal -------------------------------------------------------------------------------


def test_the_rehearsal_has_the_shapes_and_heads_of_the_real_thing(chain, images, teacher):
    stages = split_chain(chain_config(images, chain, teacher))
    opened = open_images(stages[0].data)
    for nets, plan in rehearse(stages, opened, RANKS):
        real = limbeck.load(plan.config.out).facts
        assert nets.student.facts.architecture == real.architecture
    assert nets.teacher.facts.architecture == limbeck.load(chain / "1_vit_small").facts.architecture


def test_the_rehearsal_fits_the_grid_of_patches(images, teacher, tmp_path, caplog):
    caplog.set_level("INFO")
    config = chain_config(images, tmp_path, teacher, chain=f"{FIRST},{SECOND}:img_size=48")
    *_, (nets, _) = rehearse(split_chain(config), open_images(config.data), RANKS)
    assert nets.teacher.facts.grid == nets.student.facts.grid == (6, 6)
    run = distill(replace(config, out=tmp_path / "run"))
    assert limbeck.load(run).facts.img_size == (48, 48)


def test_rehearsed_networks_make_room_for_the_training(images, teacher, tmp_path, monkeypatch):
    built, alive = [], []
    real = reading.build_networks

    def build(*arguments):
        nets = real(*arguments)
        built.append(weakref.ref(nets.student))
        return nets

    def train(plan, ranks):
        del plan, ranks
        gc.collect()
        alive.append([student() is not None for student in built])
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "build_networks", build)
    monkeypatch.setattr(training, "train", train)
    with pytest.raises(KeyboardInterrupt):
        distill(chain_config(images, tmp_path / "run", teacher))
    assert alive == [[True, False]]


def test_doctor_forecasts_the_whole_chain(images, teacher, tmp_path):
    config = chain_config(images, tmp_path / "run", teacher)
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    found = doctor(DoctorConfig(**values))
    assert found.problems == []
    assert found.forecast.total_steps == 16
    assert found.forecast.total_seconds == pytest.approx(
        16 * (found.forecast.step_seconds + found.forecast.data_seconds)
    )
    said = " ".join(report_diagnosis(found).split())
    assert "2 blocks, width 24, 3/4 heads, 32 px" in said
    assert "; then vit_tiny_patch16_224: 2 blocks, width 16, 2/4 heads, 32 px" in said
    assert "3 blocks, width 32, 4 heads, 32 px" in said
    assert not (tmp_path / "run").exists()
    assert doctor(DoctorConfig(**values | {"teacher": TeacherOptions()})).forecast is None
