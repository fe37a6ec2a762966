"""The task of detection: what it reads, says and refuses."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.records import Batch, Detections, Objects
from limbeck.tasks.detection import Detection
from tests.models.dense.test_light_detector import SIDE, images, losses_of, objects, small


def test_the_losses_are_the_detector_s():
    detector = small().train()
    task = Detection(detector)
    seen = images()
    batch = Batch(seen, seen, None, ("a", "b"), torch.arange(2), objects=objects())
    expected = losses_of(detector, objects())
    assert task(batch).parts == expected.parts and task.taps == detector.loss_taps


def test_weights_are_of_the_classes():
    detector = small()
    with pytest.raises(UserError, match="2 class weights for 3 classes"):
        Detection(detector, [1.0, 2.0])
    Detection(detector, [1.0, 2.0, 3.0])
    assert detector.class_weights.tolist() == [1, 2, 3]
    assert "class_weights" not in detector.state_dict()


def test_predictions_and_their_score():
    task = Detection(small().eval())
    found = task.predict(images())
    assert len(found) == 2 and all(isinstance(each, Detections) for each in found)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = Objects(boxes, torch.tensor([0, 1]), (SIDE, SIDE))
    said = Detections(boxes + 1, torch.ones(2), torch.tensor([0, 0]))
    assert task.score([said], [truth]) == {"recall50": 0.5}
