"""Words that are meant otherwise, few or odd images, classifiers of other classes, own code."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.campaign.hostile import Hostile
from tests.data.released import write_released

COLORS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "owl": (40, 40, 200)}
STUDENT = [
    *("--student.name", "vit_tiny", "--student.embed-dim", "24", "--student.depth", "2"),
    *("--student.num-heads", "2", "--student.img-size", "16", "--student.patch-size", "8"),
]
SHAPE = "vit_tiny:embed_dim=24:depth=2:num_heads=2:img_size=16:patch_size=8"
QUICK = ["--train.precision", "fp32", "--train.epochs", "1", "--data.num-workers", "0"]
PROBES = ["--no-measure-speed", "--data.num-workers", "0", "--label-draws", "1"]

OWN = """
import torch
import limbeck
from limbeck.methods.options import MethodOptions
from limbeck.models.encoder import EncoderFacts


class Raises(limbeck.Method):
    student_taps = (limbeck.Tap("output"),)
    teacher_taps = ()
    class Options(MethodOptions):
        needs_teacher: bool = False
    def __init__(self, options, student, teacher):
        super().__init__()
    def forward(self, student, teacher, batch):
        return self.say(student.taps[self.student_taps[0]])
    def say(self, output):
        return {}["nothing of that name"]


class SaysNone(Raises):
    def say(self, output):
        return None


class SaysTensor(Raises):
    def say(self, output):
        return output.mean()


class SaysMany(Raises):
    def say(self, output):
        return limbeck.Losses(output.mean(dim=(1, 2)))


class SaysNan(Raises):
    def say(self, output):
        return limbeck.Losses(output.mean() * float("nan"))


class WithoutGradient(Raises):
    def say(self, output):
        return limbeck.Losses(output.mean().detach())


class WrongShape(Raises):
    def say(self, output):
        return limbeck.Losses((output @ output).mean())


class AsksOddTap(Raises):
    student_taps = (limbeck.Tap("queries", 77),)


class FailsAtStart(Raises):
    def __init__(self, options, student, teacher):
        raise RuntimeError("no weights of mine here")


class Speaks(limbeck.Encoder):
    answer = staticmethod(lambda images, taps: None)
    def __init__(self, **facts):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.facts = EncoderFacts(**dict(
            embed_dim=8, depth=2, num_heads=(2, 2), num_prefix_tokens=0, has_cls_token=False,
            patch_size=8, img_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=0,
            architecture={"kind": "mine"}, origin={}) | facts)
    def offered_taps(self):
        return ("output", "tokens", "queries", "keys", "values")
    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        return self.answer(images, taps)
    def layer_id(self, parameter_name):
        return 0
    def set_num_heads(self, block, num_heads):
        pass


def silent(**options):
    return Speaks()


def of_no_taps(**options):
    teacher = Speaks()
    teacher.answer = lambda images, taps: limbeck.Features(None, 0, (2, 2), {})
    return teacher


def of_other_shape(**options):
    teacher = Speaks()
    teacher.answer = lambda images, taps: limbeck.Features(
        None, 0, (2, 2), {tap: torch.zeros(len(images), 3) for tap in taps})
    return teacher


def raising(**options):
    teacher = Speaks()
    def fail(images, taps):
        raise FileNotFoundError("my_weights.bin")
    teacher.answer = fail
    return teacher


def no_encoder(**options):
    return {"weights": 1}


def no_options():
    return Speaks()


number = 7
"""


def draw(folder: Path, count: int, classes: dict[str, tuple[int, int, int]]) -> Path:
    """``count`` small pictures of each class."""
    rng = np.random.default_rng(0)
    for name, color in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.clip(rng.integers(0, 50, (16, 16, 3)) + color, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"x_{number}.png")
    return folder


def classifier(folder: Path, classes: list[str] | None) -> Path:
    """A finished run with fresh weights and a classifier of these names."""
    from limbeck.models.build import build_student
    from limbeck.models.finished import save_student
    from limbeck.models.heads import with_classifier
    from limbeck.models.options import StudentOptions

    options = StudentOptions(
        name="vit_tiny", embed_dim=24, depth=2, num_heads=2, img_size=16, patch_size=8
    )
    student = with_classifier(build_student(options, seed=0), 3, None, 0)
    save_student(student, folder, {} if classes is None else {"classes": classes})
    return folder


def released(folder: Path, keys: list[str]) -> Path:
    write_released(folder, keys, num_epochs=1, num_classes=12, num_kept=4)
    return folder


def inputs(folder: Path) -> Iterator[Hostile]:
    """The inputs of this area."""
    photos = str(draw(folder / "photos", 8, COLORS))
    few = str(draw(folder / "few", 3, COLORS))
    ten = str(draw(folder / "ten", 5, dict(list(COLORS.items())[:2])))
    pair = str(draw(folder / "pair", 1, dict(list(COLORS.items())[:2])))
    many = str(draw(folder / "many", 14, {"": (90, 90, 90)}))
    (folder / "empty").mkdir()
    (folder / "mine_words.py").write_text(OWN)
    (folder / "broken_words.py").write_text("import json\nx = json.loads('{')\n")
    (folder / "typo_words.py").write_text("def build(:\n")
    sys.path.append(str(folder))
    yield from _words(photos, few)
    yield from _presets(folder, photos)
    yield from _small(folder, few, ten, pair, many)
    yield from _classifiers(folder, photos)
    yield from _positions(folder, many)
    yield from _own_code(photos)


def _words(photos: str, few: str) -> Iterator[Hostile]:
    yield Hostile("help", ["help"], (0,), "verbs:")
    yield Hostile("help of a verb", ["help", "inspect"], (0,), "usage: limbeck inspect")
    yield Hostile("a verb's help", ["convert-targets", "help"], (0,), "usage: limbeck convert-ta")
    yield Hostile("help of no verb", ["help", "distil"], (2,), "Did you mean 'distill'?")
    yield Hostile("an empty verb", [""], (2,), "There is no verb ''")
    yield Hostile("a verb that is an option", ["--data", photos], (2,), "There is no verb '--data'")
    for word, says in (
        ("tinymim", "--method relation"), ("MAE", "--method masked-pixel"),
        ("d-mae", "--method attention-map"), ("g2sd", "limbeck two-stage"),
        ("TinyViT", "--method sparse-logit"), ("deit", "--head distilled"),
    ):  # fmt: skip
        yield Hostile(f"{word} as a verb", [word, "--data", photos], (2,), says)
        yield Hostile(
            f"{word} as a method", ["distill", "--data", photos, "--method", word], (2,), says
        )
    yield Hostile("a paper as an arm", ["compare", "--arms", "mae-lite"], (2,), "D-MAE")
    yield Hostile("a paper as a preset", ["finetune", "--preset", "DeiT"], (2,), "--head distilled")
    files = sorted(map(str, Path(few).rglob("*.png")))
    yield Hostile("a pattern", ["distill", "--data", *files], (2,), "--data takes one place")
    yield Hostile("a pattern of one", ["doctor", "--data", files[0]], (2,), "one image")
    distill = ["distill", "--data", photos]
    yield Hostile("no value", [*distill, "--preset"], (2,), "--preset needs a value")
    yield Hostile("an option of Python", [*distill, "--train.global_batch_size", "x"], (2,))
    yield Hostile(
        "a batch that can't be cut",
        [*distill, "--train.global-batch-size", "9", "--train.accumulate-steps", "2"],
        (2,), "--train.global-batch-size 9 does not divide by --train.accumulate-steps 2",
    )  # fmt: skip
    yield Hostile(
        "too long a warm-up",
        [*distill, "--optim.warmup-epochs", "10", "--train.epochs", "5"],
        (2,), "--optim.warmup-epochs 10 leaves nothing of --train.epochs 5",
    )  # fmt: skip
    yield Hostile(
        "a wrong type", [*distill, "--train.epochs", "many"], (2,), "--train.epochs"
    )  # fmt: skip
    yield Hostile(
        "of one of two sections", ["compare", "--data", photos, "--tune.train.epochs", "-1"],
        (2,), "--tune.train.epochs -1.0 is refused",
    )  # fmt: skip
    yield Hostile(
        "an epoch that is none",
        ["finetune", "--data", photos, "--student", SHAPE, *QUICK, "--train.epochs", "1e-9"],
        (2,), "--train.epochs 1e-09",
    )  # fmt: skip


def _presets(folder: Path, photos: str) -> Iterator[Hostile]:
    contents = {
        "no toml": "a = = 1",
        "not utf-8": b"\xff\xfe",
        "deep": "a = " + "[" * 500 + "]" * 500,
        "of another verb": 'verb = "distill"\n',
        "unknown section": "[trian]\nepochs = 1\n",
        "wrong type": '[train]\nepochs = "many"\n',
        "a section that is a number": "train = 7\n",
        "a list for a number": "seed = [1]\n",
        "a table for a number": "[seed]\na = 1\n",
    }
    for name, content in contents.items():
        file = folder / f"{name.replace(' ', '_')}.toml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        words = ["finetune", "--preset", str(file), "--data", photos, "--student", SHAPE]
        yield Hostile(f"preset: {name}", words, (2,), "limbeck: ")
    yield Hostile("preset: a folder", ["distill", "--preset", f"{folder}/empty"], (2,), "no preset")
    yield Hostile("preset: not there", ["distill", "--preset", "no.toml"], (2,), "no preset")


def _small(folder: Path, few: str, ten: str, pair: str, many: str) -> Iterator[Hostile]:
    def out(name: str) -> list[str]:
        return ["--out", str(folder / "runs" / name)]

    tuning = ["--student", SHAPE, *QUICK]
    for name, data in (("few", few), ("ten", ten)):
        yield Hostile(
            f"finetune {name}", ["finetune", "--data", data, *tuning, *out(f"tune_{name}")],
            (0,), "limbeck evaluate --student",
        )  # fmt: skip
    yield Hostile(
        "finetune a pair", ["finetune", "--data", pair, *tuning, *out("pair")], (2,),
        "has 1 image to train on",
    )  # fmt: skip
    yield Hostile("finetune nothing", ["finetune", "--data", f"{folder}/empty", *tuning], (2,))
    yield Hostile(
        "distill few",
        ["distill", "--data", many, "--method", "masked-pixel", *STUDENT, *QUICK, *out("mae")],
        (0,), "do not fill a batch of 256",
    )  # fmt: skip
    yield Hostile(
        "compare few",
        ["compare", "--data", few, "--arms", "scratch", "masked-pixel", "--seeds", "1", *STUDENT,
         *QUICK, "--tune.train.precision", "fp32", "--tune.train.epochs", "1", *out("compare")],
        (0,), "can't tell much",
    )  # fmt: skip
    yield Hostile(
        "doctor few", ["doctor", "--data", ten, "--preset", "photos_vit_tiny"], (0,),
        "do not fill a batch of 64",
    )  # fmt: skip
    yield Hostile(
        "evaluate few", ["evaluate", "--data", ten, "--student", f"{folder}/runs/tune_ten",
                         *PROBES], (0,), "Verdict",
    )  # fmt: skip
    yield Hostile(
        "evaluate, nothing held out",
        ["evaluate", "--data", ten, "--student", f"{folder}/runs/tune_ten", *PROBES,
         "--data.holdout-ratio", "0"], (2,), "--data.holdout-ratio",
    )  # fmt: skip
    yield Hostile(
        "micro-batches that few images don't fill",
        ["distill", "--data", few, "--method", "masked-pixel", *STUDENT, *QUICK,
         "--train.accumulate-steps", "64", *out("micro")], (2,), "fewer than one batch",
    )  # fmt: skip


def _classifiers(folder: Path, photos: str) -> Iterator[Hostile]:
    for name, classes, says in (
        ("others", ["zebra", "apple", "mango"], "it is not asked"),
        ("permuted", ["owl", "cat", "dog"], "matched by name"),
        ("nameless", None, "does not name its classes"),
        ("ids", ["n01440764", "n01443537", "n01484850"], "WordNet"),
    ):
        run = str(classifier(folder / f"classifier_{name}", classes))
        words = ["evaluate", "--data", photos, "--student", run, *PROBES, "--num-labels", "1"]
        yield Hostile(f"a classifier: {name}", words, (0,), says)
    others = str(folder / "classifier_others")
    yield Hostile(
        "a classifier of others under corruptions",
        ["evaluate", "--data", photos, "--student", others, *PROBES, "--num-labels", "1",
         "--corruptions", "contrast", "--corruptions.severities", "1"], (0,), "it is not asked",
    )  # fmt: skip
    stage = ["two-stage", "--data", photos, "--arms", "specific", *STUDENT, "--data.num-workers",
             "0", "--specific.train.epochs", "1", "--specific.train.precision", "fp32",
             "--no-measure-speed"]  # fmt: skip
    yield Hostile(
        "a task teacher of others", [*stage, "--task-teacher", others, "--out",
                                     str(folder / "runs" / "stages")], (0,), "it is not asked",
    )  # fmt: skip
    for name, classes in (("number", 7), ("names of numbers", [1, 2, 3]), ("nested", [["a"]] * 3)):
        run = folder / f"classifier_{name.replace(' ', '_')}"
        shutil.copytree(folder / "classifier_others", run)
        record = json.loads((run / "student.json").read_text())
        (run / "student.json").write_text(json.dumps(record | {"classes": classes}))
        words = ["evaluate", "--data", photos, "--student", str(run), *PROBES]
        yield Hostile(f"classes that are no names: {name}", words)


def _positions(folder: Path, many: str) -> Iterator[Hostile]:
    keys = [str(position) for position in range(14)]
    store = [str(released(folder / "released", keys)), str(folder / "store"), "--data", many]
    words = ["convert-targets", *store, "--classes", "12"]
    yield Hostile("keys unsaid", words, (2,), "--keys positions")
    yield Hostile("listing unsaid", [*words, "--keys", "positions"], (2,), "--listing folder or")
    yield Hostile(
        "listing without keys", [*words, "--listing", "tar"], (2,), "--listing has no eff"
    )
    said = [*words, "--keys", "positions", "--listing", "tar"]
    yield Hostile("a tar's listing", said, (0,), "mixup or cutmix")
    said[-1] = "folder"
    yield Hostile("the other one after it", said, (0, 2))
    file = folder / "weights.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, file)
    yield Hostile("no released set", ["convert-targets", str(file), *words[2:]], (2,))


def _own_code(photos: str) -> Iterator[Hostile]:
    own = ["distill", "--data", photos, *STUDENT, *QUICK, "--overwrite", "--method"]
    for name, says in (
        ("Raises", "in say: KeyError: 'nothing of that name'"),
        ("SaysNone", "returned a NoneType, not limbeck.Losses"),
        ("SaysTensor", "returned a Tensor, not limbeck.Losses"),
        ("SaysMany", "not one number"),
        ("SaysNan", ""),
        ("WithoutGradient", ""),
        ("WrongShape", "in say: RuntimeError"),
        ("AsksOddTap", ""),
        ("FailsAtStart", "in __init__: RuntimeError: no weights of mine here"),
        ("Missing", "the module has no 'Missing'"),
        ("number", "is no limbeck.Method"),
    ):
        yield Hostile(f"own method: {name}", [*own, f"mine_words:{name}"], (1, 2), says)
    for module, says in (
        ("broken_words:X", "line 2, in <module>: JSONDecodeError"),
        ("typo_words:X", "line 1: SyntaxError"),
        ("nowhere_words:X", "there is no module 'nowhere_words'"),
        ("mine_words.inner:X", ""),
        (":", ""),
    ):
        yield Hostile(f"own method of {module}", [*own, module], (1, 2), says)
    taught = ["distill", "--data", photos, *STUDENT, *QUICK, "--overwrite", "--teacher"]
    for name, says in (
        ("silent", "returned a NoneType"),
        ("of_no_taps", "without Tap('output')"),
        ("of_other_shape", "has the shape (2, 3)"),
        ("raising", "in fail: FileNotFoundError: my_weights.bin"),
        ("no_encoder", "not a limbeck.Encoder"),
        ("no_options", "returned a NoneType"),
        ("number", ""),
    ):
        yield Hostile(f"own teacher: {name}", [*taught, f"mine_words:{name}"], (1, 2), says)
    yield Hostile(
        "own arm", ["compare", "--data", photos, "--arms", "mine_words:Raises", "--no-fine-tune",
                    "--seeds", "1", *STUDENT, *QUICK], (1, 2), "KeyError: 'nothing of that name'",
    )  # fmt: skip
