"""Small runs and studies by the public names alone, and what is kept of each, as plain data.

Classes of options that are not of a floor below the recipes are taken from the configs that have
them, so that nothing here knows where in ``limbeck.recipes`` anything lies.
"""

import hashlib
import json
import math
import platform
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import limbeck
from limbeck.config import to_plain
from limbeck.data.options import (
    CorruptionOptions,
    DataOptions,
    PairMixOptions,
    StoreOptions,
    TargetsOptions,
)
from limbeck.engine.loop import Interrupted
from limbeck.engine.machine import cpu_kind, cpu_name
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.methods import METHODS, TASK_METHODS
from limbeck.methods.options import (
    AttentionMapOptions,
    ClsPatchOptions,
    ClsTokenOptions,
    DecoderFeatureOptions,
    DinoOptions,
    FeatureOptions,
    LogitOptions,
    MaskedPixelOptions,
    MocoV3Options,
    NkdOptions,
    OutputSimilarityOptions,
    ReconstructionOptions,
    RelationOptions,
    SimMimOptions,
    SparseLogitOptions,
)
from limbeck.models.options import StudentOptions, TeacherOptions
from tests.recipes.runs import (
    COLORS,
    STUDENT_SHAPE,
    TEACHER_SHAPE,
    cells_of,
    draw_image,
    metrics_of,
)

FILE = Path(__file__).with_name("recorded.json")
MEASURED = re.compile(r"(^|_)(seconds|images_per_second|memory_mib|latency_ms|data_wait_share)$")
"""Names of what a clock or the system tells."""
MEASURED_TITLES = re.compile(r"(, s|, min|, ms|^s|^images/s|^MiB)$")
OF_A_MACHINE = (
    *(r", [\d.]+ times faster", r"Latency: .*", r"(, )?\bfront\b"),  # of cost and score
    *(r"(?<=tfevents)\..*", r"(?<=^corrupted_)[0-9a-f]{16}"),  # time, host, process; a path
)
"""What of the texts hangs on times, places and the machine's name."""
OF_BITS = re.compile(r"[0-9a-f]{32,}")
JUDGED = re.compile(r"^(scores?|probe|winner|baseline|verdicts|sentences|tables|corrupted.*|top1)$")
"""What a few bits in the weights may change altogether: an image more or less is right."""
SHORT = TrainOptions(
    epochs=3, global_batch_size=16, precision="fp32", device="cpu", probe_every=100, log_every=1
)
BRIEF = replace(SHORT, epochs=2)
OPTIM = OptimOptions(base_lr=1e-2)
CONFIGS = {
    "distill": limbeck.DistillConfig,
    "finetune": limbeck.FinetuneConfig,
    "store-targets": limbeck.StoreTargetsConfig,
    "compare": limbeck.CompareConfig,
    "two-stage": limbeck.TwoStageConfig,
    "search": limbeck.SearchConfig,
}
METHOD_OPTIONS: dict[str, Any] = {
    "relation": RelationOptions(mask_ratio=0.5, reconstruction=ReconstructionOptions(weight=0.5)),
    "feature": FeatureOptions(),
    "cls-token": ClsTokenOptions(),
    "cls-patch": ClsPatchOptions(hidden_dim=16),
    "output-similarity": OutputSimilarityOptions(mask_ratio=0.5),
    "attention-map": AttentionMapOptions(mask_ratio=0.5),
    "decoder-feature": DecoderFeatureOptions(
        mask_ratio=0.5, target_block=-1, decoder_depth=1, encoder_weight=0.5
    ),
    "masked-pixel": MaskedPixelOptions(),
    "simmim": SimMimOptions(mask_ratio=0.5, mask_patch_size=8, decoder_depth=1),
    "moco-v3": MocoV3Options(hidden_dim=16, out_dim=8),
    "dino": DinoOptions(
        hidden_dim=16, bottleneck_dim=8, out_dim=32, num_local_crops=2, local_img_size=16
    ),
    "sparse-logit": SparseLogitOptions(label_weight=0.1, mix=PairMixOptions(mixup_alpha=0.8)),
    "logit": LogitOptions(kind="soft"),
    "nkd": NkdOptions(),
}


LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
"""What computes and draws."""


def environment() -> dict[str, str]:
    """What bits hang on: the kind of processor, and the libraries that compute and draw."""
    return {
        "machine": platform.machine(),
        "processor": f"{cpu_name()}, {cpu_kind()}",
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name).partition("+")[0] for name in LIBRARIES},
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: on several threads bits hang on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopped_in(step: int) -> Iterator[None]:
    """Ctrl-C in that step, which the loop ends by after the next; the work must end by it."""
    count = 0

    def count_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal count
        if isinstance(optimizer, torch.optim.AdamW):  # a linear probe has another
            count += 1
            if count == step:
                signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(count_step)
    try:
        yield
    except Interrupted:
        return
    finally:
        hook.remove()
    raise AssertionError(f"nothing was stopped in step {step}")


class Setting:
    """A folder with images, a teacher and a classifier, each made when it is first wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def images(self) -> Path:
        """Three classes of 24 images each, whose colours overlap: no score is perfect."""
        rng = np.random.default_rng(0)
        for name, color in COLORS.items():
            (self.folder / "images" / name).mkdir(parents=True)
            for index in range(24):
                own = tuple(100 + 0.4 * (np.array(color) - 100) + rng.normal(0, 40, 3))
                draw_image(own, rng).save(self.folder / "images" / name / f"{index:03d}.png")
        return self.folder / "images"

    @cached_property
    def teacher(self) -> Path:
        """A masked autoencoder."""
        return limbeck.distill(
            self.distillation(
                "teacher", method="masked-pixel", student=TEACHER_SHAPE,
                masked_pixel=MaskedPixelOptions(mask_ratio=0.5),
            )
        )  # fmt: skip

    @cached_property
    def classifier(self) -> Path:
        """The same, fine-tuned, with a head that says something at once."""
        return limbeck.finetune(self.tuning("classifier", self.teacher, head_init_std=0.5))

    @property
    def data(self) -> DataOptions:
        """The images, half of them held out, read by this process."""
        return DataOptions(root=str(self.images), holdout_ratio=0.5, num_workers=0)

    def teaching(self, source: Path | None = None) -> TeacherOptions:
        """The teacher, or another one."""
        return TeacherOptions(source=str(source or self.teacher), precision="fp32")

    def distillation(self, out: str, **changes: Any) -> limbeck.DistillConfig:
        """Six steps in a folder of that name."""
        probes = type(limbeck.DistillConfig().probes)(crop_ratio=1.0)
        values = {"student": STUDENT_SHAPE, "optim": OPTIM, "train": SHORT, "probes": probes}
        values |= {"out": self.folder / out, "data": self.data}
        return limbeck.DistillConfig(**values | changes)

    def tuning(self, out: str, student: Path | str, **changes: Any) -> limbeck.FinetuneConfig:
        """Six steps in a folder of that name."""
        values = {"student": str(student), "optim": OPTIM, "train": SHORT}
        values |= {"out": self.folder / out, "data": self.data}
        return limbeck.FinetuneConfig(**values | changes)


# Single runs: each gives its folder.


def by_method(setting: Setting, method: str) -> Path:
    """A pre-training with a method of the table, from the teacher if it has one."""
    options = METHOD_OPTIONS[method]
    changes = {"method": method, method.replace("-", "_"): options}
    if options.needs_teacher:
        source = setting.classifier if options.trains_classifier else setting.teacher
        changes["teacher"] = setting.teaching(source)
    return limbeck.distill(setting.distillation(f"distill_{method}", **changes))


def by_task_method(setting: Setting, method: str) -> Path:
    """A fine-tuning with a classifier's help."""
    return limbeck.finetune(
        setting.tuning(
            f"finetune_{method}", setting.teacher, method=method,
            head="distilled" if method == "logit" else None,
            teacher=setting.teaching(setting.classifier), **{method: METHOD_OPTIONS[method]},
        )
    )  # fmt: skip


def chain(setting: Setting) -> Path:
    """Two students, one after the other."""
    stages = "vit_small:embed_dim=24:depth=2:num_heads=3,vit_tiny:embed_dim=16:depth=2:num_heads=2"
    shared = StudentOptions(img_size=32, patch_size=8)
    return limbeck.distill(
        setting.distillation("chain", chain=stages, student=shared, teacher=setting.teaching())
    )


def stored(setting: Setting) -> Path:
    """From a store of what the teacher says of two views."""
    store = str(setting.folder / "store")
    limbeck.store_targets(
        limbeck.StoreTargetsConfig(
            out=store, method="relation", seed=3, student=STUDENT_SHAPE, data=setting.data,
            teacher=setting.teaching(), store=StoreOptions(num_views=2), device="cpu",
        )
    )  # fmt: skip
    return limbeck.distill(
        setting.distillation("stored", seed=3, targets=TargetsOptions(source=store))
    )


def accumulated(setting: Setting) -> Path:
    """Two micro-batches a step, an average of the weights, the untrained tail drawn afresh."""
    return limbeck.distill(
        setting.distillation(
            "accumulated", seed=1, untrained_tail="reinit", teacher=setting.teaching(),
            train=replace(SHORT, accumulate_steps=2, ema_decay=0.9, probe_every=2, save_every=2),
        )
    )  # fmt: skip


def untaught(setting: Setting) -> Path:
    """A fine-tuning by the labels alone, of the first two blocks."""
    return limbeck.finetune(setting.tuning("finetune_plain", setting.teacher, keep_blocks=2))


def part_of_the_labels(setting: Setting) -> Path:
    """A fine-tuning with half of them, and layer decay."""
    data = replace(setting.data, label_fraction=0.5, label_seed=2)
    optim = replace(OPTIM, layer_decay=0.75)
    return limbeck.finetune(
        setting.tuning("finetune_half", setting.teacher, data=data, optim=optim, seed=2)
    )


RUNS: dict[str, Callable[[Setting], Path]] = {
    "teacher": lambda setting: setting.teacher,
    "classifier": lambda setting: setting.classifier,
    **{
        f"distill {name}": (lambda setting, name=name: by_method(setting, name)) for name in METHODS
    },
    **{
        f"finetune {name}": (lambda setting, name=name: by_task_method(setting, name))
        for name in TASK_METHODS
    },
    "finetune plain": untaught,
    "chain": chain,
    "stored": stored,
    "accumulated": accumulated,
    "part of the labels": part_of_the_labels,
}


# Studies: each gives the folder with all of its runs, and what it says for people.


def compare(setting: Setting) -> Path:
    """Three arms, two seeds, all and half of the labels."""
    default = limbeck.CompareConfig()
    limbeck.compare(
        limbeck.CompareConfig(
            arms=("untrained", "scratch", "mine=relation,drop_path_rate=0,optim.base_lr=5e-3"),
            seeds=2, out=setting.folder / "compare", label_fractions=(1.0, 0.5),
            student=STUDENT_SHAPE, teacher=setting.teaching(), data=setting.data, optim=OPTIM,
            train=BRIEF, tune=type(default.tune)(train=BRIEF),
            embed=type(default.embed)(crop_ratio=1.0),
        )
    )  # fmt: skip
    return setting.folder / "compare"


def two_stage(setting: Setting) -> Path:
    """All four arms, with the teacher's fine-tuning, and one corruption."""
    default = limbeck.TwoStageConfig()
    optim = replace(OPTIM, layer_decay=0.75)
    limbeck.two_stage(
        limbeck.TwoStageConfig(
            arms=("both", "generic", "specific", "fine-tune"), out=setting.folder / "two_stage",
            measure_speed=False, student=STUDENT_SHAPE, teacher=setting.teaching(),
            data=setting.data, method="relation", optim=OPTIM, train=BRIEF,
            specific=type(default.specific)(head="distilled", optim=optim, train=BRIEF),
            tune_teacher=type(default.tune_teacher)(optim=optim, train=BRIEF),
            evaluation=type(default.evaluation)(crop_ratio=1.0),
            corruptions=CorruptionOptions(names=("contrast",), severities=(3,)),
        )
    )  # fmt: skip
    return setting.folder / "two_stage"


def search(setting: Setting) -> Path:
    """The seed, width alone and one candidate more, which start from the seed's weights."""
    default = limbeck.SearchConfig()
    shape = "vit_tiny:img_size=32:patch_size=8:embed_dim=32:depth=2:num_heads=4:mlp_ratio=2"
    limbeck.search(
        limbeck.SearchConfig(
            out=setting.folder / "search", student=StudentOptions(name=shape), rounds=1,
            factors=("width", "depth"), inherit=True, limits=type(default.limits)(macs="70%"),
            latency=type(default.latency)(runtime="torch", num_turns=1),
            teacher=setting.teaching(), method="relation", data=setting.data, optim=OPTIM,
            train=replace(BRIEF, probe_every=1_000_000),
            probes=type(default.probes)(crop_ratio=1.0),
        )
    )  # fmt: skip
    return setting.folder / "search"


STUDIES: dict[str, Callable[[Setting], Path]] = {
    "compare": compare,
    "two-stage": two_stage,
    "search": search,
}


# What is kept of them.


def of_run(setting: Setting, name: str) -> dict[str, Any]:
    """All that a single run (a chain's stages, too) has written."""
    return _cleaned(of_folders(RUNS[name](setting)), setting)


def of_study(setting: Setting, name: str) -> dict[str, Any]:
    """All that a study's runs have written, its table and its data."""
    folder = STUDIES[name](setting)
    found = {"folders": of_folders(folder), "table": of_text((folder / "table.md").read_text())}
    return _cleaned(found, setting)


def of_stopped_run(setting: Setting) -> dict[str, Any]:
    """The files of a run that was stopped half-way, and of the same when it has gone on."""
    config = setting.distillation(
        "stopped", teacher=setting.teaching(), train=replace(SHORT, save_every=2)
    )
    with stopped_in(3):
        limbeck.distill(config)
    half_way = of_folders(config.out)
    limbeck.distill(config)
    whole = of_folders(limbeck.distill(replace(config, out=setting.folder / "whole")))
    finished = of_folders(config.out)
    assert finished["."]["sha256"] == whole["."]["sha256"]
    return _cleaned({"half-way": half_way, "finished": finished}, setting)


def of_demo(setting: Setting) -> dict[str, Any]:
    """The configs of the demo's runs, which are not run."""
    demo = import_module(limbeck.demo.__module__)
    config, digits = limbeck.DemoConfig(out=setting.folder / "demo"), setting.folder / "digits"
    distilled, alone = demo.student_configs(config, digits, 1)
    store = demo.store_config(config, digits, str(setting.folder / "demo" / "teacher"))
    teacher = demo.teacher_config(config, digits)
    found = {"teacher": teacher, "distilled": distilled, "alone": alone}
    changed = {name: _changed("distill", to_plain(each)) for name, each in found.items()}
    return _cleaned(changed | {"store": _changed("store-targets", to_plain(store))}, setting)


def of_configs() -> dict[str, Any]:
    """Every option of the verbs, with its default."""
    return {verb: _flat(to_plain(kind())) for verb, kind in CONFIGS.items()}


OTHERS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "stopped": of_stopped_run,
    "demo": of_demo,
    "defaults": lambda setting: of_configs(),
}


NAMES = (*RUNS, *STUDIES, *OTHERS)


def record(setting: Setting, name: str) -> dict[str, Any]:
    """What is recorded under a name of ``NAMES``, made anew."""
    with one_thread():
        if name in RUNS:
            return of_run(setting, name)
        return of_study(setting, name) if name in STUDIES else OTHERS[name](setting)


def of_folders(folder: Path) -> dict[str, Any]:
    """What lies in a folder of runs, by run; a file of none is with the run around it."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            continue
        owner = next(each for each in file.parents if each == folder or _is_run(each))
        own = found.setdefault(str(owner.relative_to(folder)), {"files": [], "sha256": {}})
        name = str(file.relative_to(owner))
        own["files"].append(name)
        if file.suffix == ".safetensors":
            own["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "metrics.jsonl":
            own["steps"], own["probes"] = metrics_of(owner)
        elif file.name == "config.json":
            plain = json.loads(file.read_text())
            own["config"] = _changed(plain["verb"], plain)
        elif file.name == "student.json":
            plain = json.loads(file.read_text())
            own["student"] = sorted(plain)
            own |= {key: plain[key] for key in ("architecture", "untrained") if key in plain}
        elif file.suffix == ".json" and file.name != "finished.json":
            own[name] = json.loads(file.read_text())
    return found


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", "student.json"))


def of_text(text: str) -> dict[str, Any]:
    """The tables of a text, each put together again where it was folded, and its sentences."""
    tables: dict[str, str] = {}
    sentences = []
    for part in text.strip().split("\n\n"):
        if part.startswith("|"):
            head = part.splitlines()[0].split("|")[1].strip()
            tables[head] = f"{tables[head]}\n\n{part}" if head in tables else part
        else:
            sentences += part.splitlines()
    return {
        "tables": {
            head: [
                {key: cell for key, cell in row.items() if not MEASURED_TITLES.search(key)}
                for row in cells_of(table)
            ]
            for head, table in tables.items()
        },
        "sentences": sentences,
    }


def _changed(verb: str, plain: dict[str, Any]) -> dict[str, Any]:
    """What of a config is not the default, and which defaults it does not have."""
    own, default = _flat(plain), _flat(to_plain(CONFIGS[verb]()))
    changed = {key: value for key, value in own.items() if default.get(key, own) != value}
    return changed | {"left out": sorted(default.keys() - own.keys())}


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        inner = _flat(value, f"{prefix}{key}.") if value and isinstance(value, dict) else None
        found |= inner or {f"{prefix}{key}": value}
    return found


def _cleaned(value: Any, setting: Setting) -> Any:
    """As JSON, without times, paths and what a machine is called."""
    if isinstance(value, dict):
        return {
            _cleaned(key, setting): "measured" if MEASURED.search(key) else _cleaned(each, setting)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_cleaned(each, setting) for each in value]
    if isinstance(value, str):
        value = value.replace(str(setting.folder), "HERE")
        for words in OF_A_MACHINE:
            value = re.sub(words, "", value)
    return value


def differences(was: Any, now: Any, is_exact: bool, place: str) -> Iterator[str]:
    """Where two values differ, in words; without ``is_exact`` by more than rounding can explain."""
    if isinstance(was, dict) and isinstance(now, dict):
        if was.keys() != now.keys():
            gone, new = sorted(was.keys() - now.keys()), sorted(now.keys() - was.keys())
            yield f"{place}: no longer there {gone}, new {new}"
        for key in was.keys() & now.keys():
            pair = (was[key], now[key])
            if not is_exact and JUDGED.match(key):
                pair = (shape_of(was[key]), shape_of(now[key]))
            inner = f"{place}, step {was['step']}" if "step" in was else place
            yield from differences(*pair, is_exact, f"{inner} / {key}")
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{place}: {len(was)} entries were {was}, {len(now)} are {now}"
        for index, pair in enumerate(zip(was, now, strict=False)):
            yield from differences(*pair, is_exact, f"{place} [{index}]")
    elif not is_exact and float in (type(was), type(now)) and isinstance(now, int | float):
        # A norm of gradients through a batch norm of few images is the least certain of all.
        tolerance = 1e-2 if place.endswith("grad_norm") else 1e-3
        if not math.isclose(was, now, rel_tol=tolerance, abs_tol=1e-6):
            yield f"{place}: was {was!r}, is {now!r}"
    elif not is_exact and isinstance(was, str) and isinstance(now, str):
        if OF_BITS.sub("", was) != OF_BITS.sub("", now):
            yield f"{place}: was {was!r}, is {now!r}"
    elif type(was) is not type(now) or was != now:
        yield f"{place}: was {was!r}, is {now!r}"


def shape_of(value: Any) -> Any:
    """Keys and lengths, with the kind of everything else in its place."""
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape_of(each) for each in value]
    return type(value).__name__
