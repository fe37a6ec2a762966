"""``limbeck distill --chain A,B,C``: each student becomes the next one's teacher, as distilled.

Sequential distillation of TinyMIM, arXiv 2301.01296. A stage is an ordinary run in a folder of its
own, so it resumes like one. What we do differently: the head count that a student was trained with
travels with it, so that every pair of networks works, and the next stage learns the very relations
that the student was trained to have.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.config import from_plain
from limbeck.documents import read_json
from limbeck.errors import UserError, did_you_mean
from limbeck.methods import METHODS
from limbeck.methods.options import TransferOptions
from limbeck.models.options import SHAPE, StudentOptions
from limbeck.models.shape_names import split_shape
from limbeck.recipes.run import checks

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.models.finished import Keepsake
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.recipes.run.options import DistillConfig
    from limbeck.recipes.run.plan import Plan
    from limbeck.recipes.run.resolved import Identity

log = logging.getLogger("limbeck")

SHARED = ("img_size", "patch_size")
"""Options of --student that hold for every stage which does not state its own."""


def check_chain(config: DistillConfig) -> None:
    """All that can be wrong with the stages without building a network; raises UserError."""
    for field in fields(StudentOptions):
        is_changed = getattr(config.student, field.name) != field.default
        if is_changed and field.name not in SHARED:
            raise UserError(
                f"student.{field.name} has no effect with --chain, whose stages name the students; "
                "state it there, such as --chain vit_base,vit_tiny:num_heads=6."
            )
    section = getattr(config, config.method.replace("-", "_")) if config.method in METHODS else None
    if section is not None and not section.needs_teacher:
        raise UserError(
            f"A chain hands a teacher on, and the method {config.method} has none; leave --chain "
            "out, or choose another method."
        )
    for text in config.chain.split(","):
        _read_stage(text, config.student)


def check_first_teacher(config: DistillConfig) -> None:
    """Raise UserError unless a chain's first teacher is named."""
    if config.teacher.source is None:
        raise UserError(
            "A chain needs its first teacher; name one, such as "
            "--teacher timm:vit_large_patch16_224.mae or --teacher path/to/weights.safetensors."
        )


def split_chain(config: DistillConfig) -> list[DistillConfig]:
    """The configs of the stages, each an ordinary run; one of a config without a chain.

    What describes the first teacher (its image size, heads, patch size and target block) holds for
    the first stage. The others learn from the block in which the student before them has learnt.
    """
    if not config.chain:
        return [config]
    stages: list[DistillConfig] = []
    for text, out in zip(
        config.chain.split(","), stage_dirs(config.out, config.chain), strict=True
    ):
        changes: dict[str, Any] = {"student": _read_stage(text, config.student)}
        if stages:
            changes["teacher"] = replace(
                config.teacher,
                source=str(stages[-1].out), img_size=None, num_heads=None, patch_size=None,
            )  # fmt: skip
            changes |= _target_what_was_trained(config)
        stages.append(replace(config, chain="", out=out, **changes))
    return stages


def _target_what_was_trained(config: DistillConfig) -> dict[str, Any]:
    from limbeck.recipes.run.networks import method_class, method_options

    options = method_options(config, method_class(config.method))
    if config.method in METHODS:
        return {config.method.replace("-", "_"): options.for_next_stage()}
    if not isinstance(options, TransferOptions):
        return {}  # a method of one's own that names no blocks, or in its own way
    kept = [x for x in config.method_options if x.partition("=")[0].strip() != "teacher_block"]
    return {"method_options": (*kept, f"teacher_block={options.student_block}")}


def stage_dirs(out: Path, chain: str) -> list[Path]:
    """The folders of the stages: ``out/1_vit_base``, ``out/2_vit_small`` and so on."""
    names = [text.partition(":")[0].strip() for text in chain.split(",")]
    return [out / f"{number}_{name}" for number, name in enumerate(names, 1)]


class _Chained(TypedDict, total=False):
    chain: str


def finished_stages(run_dir: Path) -> list[Path]:
    """The stages' folders of a finished chain; none where the folder holds an ordinary run."""
    file = run_dir / "config.json"
    said: _Chained = read_json(file, _Chained) if file.exists() else {}
    chain = said.get("chain", "")
    return stage_dirs(run_dir, chain) if chain else []


def _read_stage(text: str, shared: StudentOptions) -> StudentOptions:
    """The student of a stage such as ``vit_tiny:num_heads=6:embed_dim=96``."""
    text = text.strip()
    if not text:
        raise UserError("--chain has a stage without a name; write NAME,NAME,NAME.")
    where = f"chain stage '{text}'"
    try:
        name, stated = split_shape(text)
    except UserError as error:
        raise UserError(f"{where}: {error} A stage starts from fresh weights.") from error
    for key in stated:
        if key not in SHAPE:
            raise UserError(
                f"{where}: there is no option '{key}'.{did_you_mean(key, SHAPE)} "
                f"A stage takes {', '.join(SHAPE)}."
            )
    values: dict[str, Any] = {"name": name} | {key: getattr(shared, key) for key in SHARED}
    student = from_plain(StudentOptions, values | stated, where)
    try:
        checks.check_student(student)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if "." in name:
        plain = name.partition(".")[0]
        raise UserError(f"{where}: a stage starts from fresh weights; write '{plain}'.")
    return student


def rehearse(
    stages: list[DistillConfig], images: Images, ranks: Ranks
) -> Iterator[tuple[Networks, Plan]]:
    """Every stage's networks and plan, as they are before any of them is trained.

    The teachers of later stages have the shapes and head counts that they will have, and fresh
    weights. Raises UserError, naming the stage, where networks can't be built or do not fit.
    """
    from limbeck.recipes.targets.reading import open_networks
    from limbeck.recipes.train.pretraining import plan_pretraining

    load: Callable[..., Encoder] | None = None
    for stage in stages:
        if len(stages) > 1:
            log.info("Stage %s is built once, to see that it fits.", stage.out.name)
        try:
            nets = open_networks(stage, ranks.device, load)
            plan = plan_pretraining(stage, nets, images, ranks)
        except UserError as error:
            if len(stages) == 1:
                raise
            raise UserError(f"Stage {stage.out.name}: {error}") from error
        load = rebuilt(nets.student.facts.architecture)
        if nets.method_options.reads_decoder:
            load = _with_decoder(load, nets.method.keepsakes())
        yield nets, plan


def rebuilt(architecture: dict[str, Any], **origin: Any) -> Callable[..., Any]:
    """A function like ``load_encoder`` for a network that is still to be trained.

    ``origin`` is what its facts will say of it, beside its source.
    """
    from limbeck.models.finished import rebuild
    from limbeck.models.windows import with_img_size

    def load(source: str, img_size: int | None = None, num_heads: int | None = None) -> Encoder:
        kwargs = architecture["kwargs"]
        if img_size:
            kwargs = with_img_size(kwargs, (img_size, img_size))
        encoder = rebuild(architecture | {"kwargs": kwargs}, {"source": source} | origin)
        for block in range(encoder.facts.depth if num_heads else 0):
            encoder.set_num_heads(block, num_heads)
        return encoder

    return load


def _with_decoder(
    load: Callable[..., Encoder], kept: dict[str, Keepsake]
) -> Callable[..., Encoder]:
    """Likewise as ``load_autoencoder``, with the decoder that will be kept beside the network."""
    from limbeck.models.origins.decoder import join_decoder

    return lambda source, **overrides: join_decoder(load(source, **overrides), kept, source)


def distill_chain(config: DistillConfig, images: Images, ranks: Ranks) -> Path:
    """Distil every stage that is not finished yet; returns ``config.out`` with the last student.

    Before the first stage trains, all are built once, so that the last can't fail on its shape
    after days. Every rank reads the teachers from their folders: on several machines ``out`` must
    be one that they share. Raises as ``distill`` does.
    """
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import on_main_rank
    from limbeck.models.finished import STUDENT_FILES
    from limbeck.recipes.run.precision import settled_plain
    from limbeck.recipes.run.train import train

    stages = split_chain(config)
    first: Plan | None
    first, identities = _rehearse_all(stages, images, ranks)
    resolved = {
        stage.out.name: own["resolved"] for stage, (own, _) in zip(stages, identities, strict=True)
    }
    run = open_run(
        config.out,
        {"verb": "distill", **settled_plain(config), "resolved": resolved},
        {name: identities[0][1][name] for name in ("data", "teacher")},
        overwrite=config.overwrite,
        makes=STUDENT_FILES,
    )
    if run.is_finished:
        log.info("%s is finished already; nothing to do.", run.dir)
        return run.dir
    _open_stages(stages, identities)
    for number, stage in enumerate(stages, 1):
        log.info(
            "Stage %d of %d: %s learns from %s.",
            number, len(stages), stage.student.name, stage.teacher.source,
        )  # fmt: skip
        train(first or _plan(stage, images, ranks), ranks)
        first = None  # its memory is the next stage's

    def finish() -> None:
        copy_student(stages[-1].out, run.dir)
        run.finish()

    on_main_rank(finish)
    return run.dir


def _plan(stage: DistillConfig, images: Images, ranks: Ranks) -> Plan:
    ((_, plan),) = rehearse([stage], images, ranks)
    return plan


def _rehearse_all(
    stages: list[DistillConfig], images: Images, ranks: Ranks
) -> tuple[Plan, list[Identity]]:
    """The first stage's plan, whose teacher is real and big, and what each stage will be."""
    rehearsal = rehearse(stages, images, ranks)
    _, first = next(rehearsal)
    # One pair of networks at a time: the others' memory is that of the training.
    return first, [first.identity(ranks), *(plan.identity(ranks) for _, plan in rehearsal)]


def _open_stages(stages: list[DistillConfig], identities: list[Identity]) -> None:
    """See to it, before days are spent, that no stage is another run; raises UserError.

    With overwrite what does not fit is cleared at once: the chain may be continued without.
    """
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import on_main_rank
    from limbeck.recipes.run.networks import (
        loader_of,
        method_class,
        method_options,
        teacher_identity,
    )

    load = loader_of(method_options(stages[0], method_class(stages[0].method)))
    is_ready = True
    for index, (stage, (config, fingerprint)) in enumerate(zip(stages, identities, strict=True)):
        if not on_main_rank(stage.out.exists):
            is_ready = False
            continue
        if index:
            source = stages[index - 1].out
            teacher = teacher_identity(str(source), load(source).facts) if is_ready else {}
            fingerprint = fingerprint | {"teacher": teacher or {"weights": "not trained yet"}}
        run = open_run(stage.out, config, fingerprint, overwrite=stage.overwrite)
        is_ready = run.is_finished


def copy_student(stage_dir: Path, out: Path) -> None:
    """Copy a finished student's files into another folder, each whole or not at all."""
    from limbeck.files import write_whole
    from limbeck.models.finished import RECORD_FILE, WEIGHTS_FILE, read_record

    kept = [f"{name}.safetensors" for name in read_record(stage_dir)[1].get("kept", {})]
    # The record last: where it exists, the weights are complete.
    for name in (*kept, WEIGHTS_FILE, RECORD_FILE):
        with (stage_dir / name).open("rb") as source:
            write_whole(
                out / name, lambda target, source=source: shutil.copyfileobj(source, target)
            )
