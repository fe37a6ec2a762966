"""What plans of segmentation and detection share."""

import torch

from limbeck.engine.distributed import Ranks
from limbeck.methods.distiller import Distiller
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.options import DetectorOptions, TeacherOptions
from limbeck.recipes.run.networks import load_vit
from limbeck.recipes.run.objects import open_object_images
from limbeck.recipes.train.dense import build_headed
from limbeck.recipes.train.detection import plan_detection
from tests.recipes.objects import detect_config


def test_a_student_is_put_in_the_size_of_the_config(objects, tmp_path):
    config = detect_config(objects, tmp_path, drop_path_rate=0.2)
    asked = []

    def put(backbone, size):
        asked.append(size)
        return build_detector(backbone, 2, DetectorOptions(width=16), 0, size)

    network = build_headed(config, Ranks(), load_vit, put)
    assert asked == [(48, 48)] and network.facts.img_size == (48, 48)
    assert network.backbone.blocks[-1].drop_path1.drop_prob == torch.tensor(0.2)


def test_a_teacher_stands_beside_the_task(objects, detector, tmp_path):
    config = detect_config(objects, tmp_path)
    images = open_object_images(config.data)
    alone = plan_detection(config, images, Ranks())
    assert alone.module.encoder is alone.student and alone.teacher is None
    teacher = TeacherOptions(source=str(detector), precision="fp32")
    config = detect_config(objects, tmp_path, teacher=teacher)
    taught = plan_detection(config, images, Ranks())
    assert isinstance(taught.module, Distiller) and taught.module.student is taught.student
    assert taught.about()["classes"] == alone.about()["classes"]
