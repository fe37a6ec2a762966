"""Masked autoencoders as teachers in a run, a chain, the doctor and inspect."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.models.finished import Keepsake, load_kept, load_student, save_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.decoder import load_autoencoder
from limbeck.models.origins.kept_decoder import FEATURE_DECODER
from limbeck.recipes.look.doctor import DoctorConfig, doctor, report
from limbeck.recipes.look.inspect import InspectConfig, inspect
from limbeck.recipes.look.inspect import report as report_inspection
from limbeck.recipes.train.distill import distill
from tests.recipes.runs import distill_config, metrics_of, snapshot, weights_of

METHOD = "tests.methods.decoder_reader:DecoderReader"
CHAIN = "vit_small:embed_dim=24:depth=2:num_heads=3,vit_tiny:embed_dim=16:depth=2:num_heads=2"
FOLDERS = ["1_vit_small", "2_vit_tiny"]


def reader_config(images, out, teacher, /, **changes):
    values = {"method": METHOD, "relation": RelationOptions()} | changes
    return distill_config(images, out, teacher, **values)


def chain_config(images, out, teacher, /, **changes):
    sizes = StudentOptions(img_size=32, patch_size=8)
    return reader_config(images, out, teacher, chain=CHAIN, student=sizes, **changes)


@pytest.fixture(scope="module")
def chain(images, teacher, tmp_path_factory):
    """A finished chain of two stages; nothing may write into it."""
    return distill(chain_config(images, tmp_path_factory.mktemp("chain") / "run", teacher))


def with_other_decoder(teacher, out):
    """The same encoder with a decoder that differs in one number."""
    kept = load_kept(teacher)["decoder"]
    weights = {name: value.clone() for name, value in kept.weights.items()}
    weights["mask_token"][..., 0] += 1
    save_student(load_student(teacher), out, {}, kept={"decoder": Keepsake(weights, kept.facts)})
    return out


def test_a_run_goes_on_only_with_the_same_decoder(images, teacher, tmp_path):
    config = reader_config(images, tmp_path / "run", teacher)
    distill(config)
    record = json.loads((config.out / "student.json").read_text())["teacher"]
    identity = load_autoencoder(teacher).facts.identity
    assert record["weight_hash"] == identity["weights"]
    assert record["architecture"]["decoder"] == {"embed_dim": 16, "depth": 1, "num_heads": 1}
    other = with_other_decoder(teacher, tmp_path / "other")
    assert weights_of(other) == weights_of(teacher)
    with pytest.raises(UserError, match="holds another run: fingerprint of teacher.weights is"):
        distill(reader_config(images, tmp_path / "run", other))


def test_a_teacher_without_its_decoder_is_refused_before_there_is_a_folder(
    images, classifier, tmp_path
):
    with pytest.raises(UserError, match="has no decoder, .* mae_pretrain_vit_base_full.pth"):
        distill(reader_config(images, tmp_path / "run", classifier))
    assert not (tmp_path / "run").exists()


def test_teacher_drop_path_is_refused(images, teacher, tmp_path):
    named = TeacherOptions(source=str(teacher), drop_path_rate=0.1)
    with pytest.raises(UserError, match="drop_path_rate is for an encoder alone"):
        distill(reader_config(images, tmp_path / "run", teacher, teacher=named))


def test_each_student_teaches_with_the_decoder_that_it_kept(chain, teacher):
    first, last = (chain / name for name in FOLDERS)
    for run, taught_by in ((first, teacher), (last, first)):
        record = json.loads((run / "student.json").read_text())["teacher"]
        assert record["weight_hash"] == load_autoencoder(taught_by).facts.identity["weights"]
        losses = [each["losses"]["total"] for each in metrics_of(run)[0]]
        assert len(losses) == 8 and losses[-1] < losses[0]
    assert weights_of(chain) == weights_of(last)
    kept = load_file(chain / f"{FEATURE_DECODER}.safetensors")
    assert kept.keys() >= {"decoder_embed.weight", "decoderfeature_pred.weight"}


def test_a_chain_goes_on_after_its_first_stage(chain, images, teacher, tmp_path):
    copy = shutil.copytree(chain, tmp_path / "moved")
    for name in ("finished.json", "student.json", "student.safetensors"):
        (copy / name).unlink()
    stages = [snapshot(copy / name) for name in FOLDERS]
    distill(chain_config(images, copy, teacher))
    assert [snapshot(copy / name) for name in FOLDERS] == stages
    assert weights_of(copy) == weights_of(chain)


def test_a_student_that_keeps_no_decoder_can_not_teach(images, teacher, tmp_path):
    config = chain_config(images, tmp_path / "run", teacher, method_options=("keeps=false",))
    with pytest.raises(UserError, match="Stage 2_vit_tiny: .*1_vit_small has no decoder"):
        distill(config)
    assert not config.out.exists()


def test_the_doctor_and_inspect_tell_the_decoder(images, teacher, chain, tmp_path):
    config = reader_config(images, tmp_path / "run", teacher)
    diagnosis = doctor(DoctorConfig(**vars(config)))
    assert "32 px, a decoder of 1 blocks, width 16, 0." in diagnosis.forecast.teacher
    assert "a decoder of" not in diagnosis.forecast.student
    said = " ".join(report(diagnosis).split())  # long lines are folded
    assert f"teacher {diagnosis.forecast.teacher}" in said
    for run, told in (
        (teacher, "1 blocks, width 16, 1 heads; predicts pixels"),
        (chain, "1 blocks, width 16, 2 heads; predicts a teacher's features (G2SD)"),
    ):
        assert f"  decoder   {told}\n" in report_inspection(inspect(InspectConfig(file=str(run))))
