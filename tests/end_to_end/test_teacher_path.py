"""A masked autoencoder of any origin is continued, teaches, is fine-tuned, and teaches again."""

import json

import pytest
import torch

from limbeck import cli
from limbeck.models.origins.decoder import load_autoencoder
from tests.end_to_end.commands import STUDENT, train_words
from tests.models.origins import writers
from tests.models.origins.test_decoder import vit_mae
from tests.recipes.runs import metrics_of


def published_file(folder, teacher):
    del teacher
    file = folder / "mae_pretrain_tiny_full.pth"
    writers.save_published(file, writers.mae_full(192, decoder_width=512, decoder_depth=2))
    return file


def transformers_folder(folder, teacher):
    del teacher
    vit_mae().save_pretrained(folder / "vit-mae")
    return folder / "vit-mae"


def own_run(folder, teacher):
    del folder
    return teacher


@pytest.mark.parametrize(
    ("write", "decoder"),
    [(published_file, (512, 2, 16)), (transformers_folder, (16, 2, 2)), (own_run, (16, 1, 1))],
)
def test_from_any_masked_autoencoder_to_both_teachers(images, teacher, tmp_path, write, decoder):
    source = write(tmp_path, teacher)
    shape = zip(("embed-dim", "depth", "num-heads"), decoder, strict=True)

    def run(verb, name, *words):
        shared = train_words(images, tmp_path / name)
        shared[shared.index("--train.epochs") + 1] = "1"
        cli.run([verb, *shared, *words])
        record = json.loads((tmp_path / name / "student.json").read_text())
        return str(tmp_path / name), record

    # At this rate the weights stay those of the source, so that they can be recognised.
    continued, _ = run(
        *("distill", "continued", "--method", "masked-pixel", "--student.weights", str(source)),
        *("--student.img-size", "32", "--masked-pixel.mask-ratio", "0.5"),
        *(f"--masked-pixel.decoder-{name}={value}" for name, value in shape),
        *("--optim.base-lr", "1e-7"),
    )
    own, old = (load_autoencoder(each, img_size=32) for each in (continued, source))
    for name, value in old.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, atol=1e-5, rtol=0)

    generic, learnt = run(
        *("distill", "generic", *STUDENT, "--method", "decoder-feature", "--teacher", continued),
        *("--decoder-feature.target-block", "0", "--decoder-feature.mask-ratio", "0.5"),
    )
    assert learnt["teacher"]["weight_hash"] == own.facts.identity["weights"]

    classifier, tuned = run("finetune", "classifier", "--student", continued)
    assert tuned["classes"] == ["blue", "green", "red"]
    _, specific = run(
        *("finetune", "specific", "--student", generic, "--teacher", classifier),
        *("--head", "distilled-last", "--drop-path-rate", "0"),
    )
    assert specific["teacher"]["weight_hash"] == tuned["weight_hash"]
    assert specific["student"]["weight_hash"] == learnt["weight_hash"]
    steps, _ = metrics_of(tmp_path / "specific")
    assert all(step["losses"].keys() == {"total", "class", "logit"} for step in steps)
