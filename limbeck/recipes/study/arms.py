"""The entries of a comparison: what its command line says of each arm, as ordinary runs."""

import re
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limbeck.config import from_plain, has_own_module, to_plain
from limbeck.documents import to_json
from limbeck.errors import UserError, did_you_mean
from limbeck.methods import METHODS
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.papers import of_paper
from limbeck.recipes.run.options import CropEvalOptions, DistillConfig, FinetuneConfig, ProbeOptions
from limbeck.recipes.study.options import BASELINES, UNTRAINED, CompareConfig
from limbeck.recipes.study.runs import needs_teacher, values_of, without_layer_decay
from limbeck.recipes.train.finetune import with_labels

SECTIONS = ("optim", "crop", "teacher", "student")
"""Shared sections of which an arm may state options of its own, such as optim.base_lr."""
START = "start"
"""In a method's place: no pre-training, but a student of the arm's own, such as public weights."""


@dataclass(frozen=True)
class Entry:
    """What is said of an arm. ``method`` None: no pre-training. ``own``: options by dotted name; of
    an arm without pre-training those of a student of its own, if any."""

    name: str
    method: str | None
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def of_method(self) -> dict[str, Any]:
        """Its options of the method."""
        return {name: value for name, value in self.own.items() if not _section_of(name)}

    @property
    def of_run(self) -> dict[str, Any]:
        """Its options of shared sections: in these it differs from the others."""
        return {name: value for name, value in self.own.items() if _section_of(name)}


def read_arms(texts: tuple[str, ...]) -> list[Entry]:
    """The arms in their order; raises UserError for one that can't be meant, or has no name."""
    arms = [_read_arm(text.strip()) for text in texts]
    if not any(arm.method or arm.own for arm in arms):
        raise UserError("There is nothing to compare; name one method or more with --arms.")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"Two arms are called '{twice}'; name them, such as --arms first={twice} "
            f"second={twice},OPTION=VALUE."
        )
    return arms


def _read_arm(text: str) -> Entry:
    """Such as ``moco-v3``, ``d2=attention-map,decoupled`` or ``mine=module:Class,beta=2.0``."""
    # At commas that are not within brackets or quotes.
    head, *words = re.split(r""",(?=(?:[^"]*"[^"]*")*[^"]*$)(?![^\[]*\])""", text)
    name, equals, method = head.partition("=")
    if not equals:
        method, name = head, re.sub(r".*:", "", head)
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(
            f"arm '{text}': a name has letters, digits, '.', '_' and '-' only; an arm is METHOD or "
            "NAME=METHOD, and then ,OPTION=VALUE."
        )
    if method in BASELINES:
        if words or equals:
            raise UserError(f"arm '{text}': {method} has no options and no other name.")
        return Entry(method, None)
    if name in BASELINES:
        raise UserError(f"arm '{text}': the name '{name}' is that of a baseline; take another.")
    if method == START:
        own = _options(text, words)
        if (
            name == START
            or "student.weights" not in own
            or any(_section_of(key) != "student" for key in own)
        ):
            raise UserError(
                f"arm '{text}': an arm without pre-training has a name, and says what it starts "
                "from: public=start,student.weights=timm:NAME (or another option of the student)."
            )
        return Entry(name, None, own)
    if ":" in method:
        if not has_own_module(method):
            raise UserError(
                f"arm '{text}': there is no module '{method.partition(':')[0]}' here or installed."
            )
    elif method not in METHODS:
        choices = (*METHODS, *BASELINES, START)
        raise UserError(
            f"arm '{text}': there is no method '{method}'."
            f"{of_paper(method) or did_you_mean(method, choices)} Choose one of "
            f"{', '.join(choices)}, or your own as module:Class."
        )
    return Entry(name, method, _options(text, words))


def _options(text: str, words: list[str]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().replace("-", "_")
        if not key or key in own:
            raise UserError(f"arm '{text}': '{word}' is no OPTION=VALUE, or stated twice.")
        own[key] = _value(value.strip()) if equals else True
    return own


def _value(text: str) -> Any:
    """As in TOML; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _section_of(name: str) -> str | None:
    section, dot, _ = name.partition(".")
    return section if dot and section in SECTIONS else None


def student_of(config: CompareConfig, arm: Entry) -> StudentOptions:
    """The student of an arm: the shared one, with what the arm says of it; where that is a name or
    weights, the shape of the shared one but for its image size is not meant."""
    own = {k.removeprefix("student."): v for k, v in arm.own.items() if k.startswith("student.")}
    shared = config.student
    if own.keys() & {"name", "weights"}:
        shared = StudentOptions(img_size=shared.img_size)
    return (
        from_plain(StudentOptions, to_plain(shared) | own, f"arm '{arm.name}'") if own else shared
    )


def arm_config(config: CompareConfig, arm: Entry, seed: int, needs_teacher: bool) -> DistillConfig:
    """The pre-training of an arm with a method; raises UserError for options it does not have."""
    assert arm.method is not None
    where = f"arm '{arm.name}'"
    teacher = config.teacher if needs_teacher else TeacherOptions()
    shared = {"optim": config.optim, "crop": config.crop, "teacher": teacher}
    changes: dict[str, Any] = {"student": student_of(config, arm)}
    for section, options in shared.items():
        prefix = f"{section}."
        own = {k.removeprefix(prefix): v for k, v in arm.of_run.items() if k.startswith(prefix)}
        changes[section] = from_plain(type(options), to_plain(options) | own, where)
    if arm.method in METHODS:
        section = arm.method.replace("-", "_")
        kind = type(getattr(DistillConfig(), section))
        changes[section] = from_plain(kind, _nested(arm.of_method), where)
    else:
        words = (f"{name} = {_as_toml(value)}" for name, value in arm.of_method.items())
        changes["method_options"] = tuple(words)
    return DistillConfig(
        out=run_dir(config.out, arm, seed), method=arm.method, seed=seed,
        overwrite=config.overwrite, data=config.data, train=config.train,
        probes=ProbeOptions(**asdict(config.embed)), **changes,
    )  # fmt: skip


def tuning_config(config: CompareConfig, arm: Entry, seed: int, fraction: float) -> FinetuneConfig:
    """The fine-tuning of an arm with a part of the labels; its student is still to be named."""
    tune, embed = config.tune, asdict(config.embed)
    del embed["pool"]
    own = {
        "out": tuned_dir(config.out, arm, seed, fraction),
        "seed": seed,
        "overwrite": config.overwrite,
        "data": with_labels(config.data, fraction, seed),
        "optim": tune.optim if arm.method or arm.own else without_layer_decay(tune.optim),
        "evaluation": CropEvalOptions(**embed),
    }
    return FinetuneConfig(**values_of(tune) | own)


def table_needs_teacher(arm: Entry) -> bool | None:
    """Whether an arm's method has a teacher; None for one's own, which must be imported first."""
    if arm.method not in METHODS:
        return None if arm.method else False
    return needs_teacher(arm.method, DistillConfig())


def run_dir(out: Path, arm: Entry, seed: int) -> Path:
    """Where an arm's student is before it is fine-tuned: the baselines share their start."""
    return out / f"{arm.name if arm.method or arm.own else UNTRAINED}_{seed}"


def tuned_dir(out: Path, arm: Entry, seed: int, fraction: float = 1.0) -> Path:
    """Where it is fine-tuned, with all labels or a part of them."""
    part = f"_labels{fraction:g}" if fraction < 1 else ""
    return out / f"{arm.name}_{seed}_finetuned{part}"


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, dot, rest = name.partition(".")
        inner = nested.get(section, {})  # a number in a section's place is refused with the rest
        inner = inner | {rest: value} if isinstance(inner, dict) else inner
        nested[section] = inner if dot else value
    return nested


def _as_toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return to_json(value, None) if isinstance(value, str | bool) else str(value)  # inf, dates
