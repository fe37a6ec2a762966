"""The finished student of a folder, as it was trained."""

import numpy as np
import pytest

from limbeck.exports.reference import load
from limbeck.models.finished import save_student
from tests.models.families import small_encoder, small_images


def test_it_answers_as_the_network_whatever_it_takes(tmp_path):
    encoder = small_encoder("augreg")
    save_student(encoder, tmp_path, {})
    pixels = (255 * small_images()).round()
    expected = encoder.model(
        (pixels / 255 - encoder.mean) / encoder.std
    ).detach().numpy()  # fmt: skip
    run = load(tmp_path, {"input": {"kind": "uint8"}}, 1)
    found = run(pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8))["logits"]
    assert found == pytest.approx(expected, abs=1e-5)
