"""``limbeck push``: a finished student with its card in a Hugging Face repository.

Nothing is sent unless asked: without --upload the files are made for a look. Imports of torch are
inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limbeck.config import options
from limbeck.documents import read_json, write_json
from limbeck.errors import UserError
from limbeck.files import disk_errors, write_text
from limbeck.recipes.run import checks

log = logging.getLogger("limbeck")

CARD_FILE, RECORD_OF_TIMM = "README.md", "limbeck.json"


@options
class PushConfig:
    """Lay a finished student out as a repository, with a model card; upload it with --upload."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """The finished student: a run's folder."""
    to: str = ""
    """OWNER/NAME of the repository on the Hugging Face hub; it is made if there is none."""
    upload: bool = False
    """Send the files. Without it nothing is sent: look at them first."""
    public: bool = False
    """A repository that is made is for everybody to see; for its owner alone if not given."""
    licence: str | None = None
    """The licence that you give it, as the hub names it (apache-2.0, cc-by-nc-4.0)."""
    out: Path | None = None
    """Folder for the files; NAME in the working folder if not given."""
    overwrite: bool = False
    """Replace the files of another student there."""


@dataclass(frozen=True)
class Pushed:
    """The files, for which repository, and its address where they were sent."""

    folder: Path
    files: tuple[Path, ...]
    to: str
    is_timm: bool
    warnings: tuple[str, ...]
    address: str | None


def check(config: PushConfig) -> Path:
    """All that can be wrong without reading the student; the folder for the files."""
    if not config.run or not config.to:
        raise UserError("A run and a repository are needed; run: limbeck push RUN --to OWNER/NAME.")
    checks.check_path(config.run, "limbeck push")
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", config.to, re.ASCII):
        raise UserError(f"--to {config.to} is no name of a repository; say OWNER/NAME.")
    out = config.out or Path(config.to.partition("/")[2])
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / CARD_FILE).is_file():
        raise UserError(f"{out} holds other files, which stay; choose another --out.")
    if config.licence is not None and not re.fullmatch(r"[a-z0-9.-]+", config.licence):
        raise UserError(f"--licence {config.licence}: the hub's names are like apache-2.0 or mit.")
    return out


def push(config: PushConfig) -> Pushed:
    """Write the files, and send them if asked.

    Raises UserError for what is no finished student, and for a hub that refuses or is not reached.
    """
    out = check(config)
    from limbeck.models.finished import STUDENT_FILES, load_finished, read_record
    from limbeck.models.hub_files import timm_reads, write_for_timm
    from limbeck.models.licences import ancestors
    from limbeck.models.origins.hub import upload
    from limbeck.models.timm_encoder import TimmEncoder
    from limbeck.recipes.ship.card import card, without_places

    network = load_finished(config.run)
    folder, record = read_record(config.run)
    _check_same(out, record["weight_hash"], config)
    line = ancestors(record)
    for warning in filter(None, (each.warning for each in line)):
        log.warning("%s", warning)
    is_timm = isinstance(network, TimmEncoder) and timm_reads(network)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "config.json", RECORD_OF_TIMM, *STUDENT_FILES):
            (out / name).unlink(missing_ok=True)
        if is_timm:
            assert isinstance(network, TimmEncoder)
            ratio = record["preprocessing"]["crop_ratio"]
            write_for_timm(network, out, crop_ratio=ratio, licence=config.licence)
        else:
            shutil.copyfile(folder / STUDENT_FILES[0], out / STUDENT_FILES[0])
    told = without_places({k: v for k, v in record.items() if k != "kept"})
    write_json(out / (RECORD_OF_TIMM if is_timm else STUDENT_FILES[1]), told)
    text = card(
        config.to, network.facts, told, line, licence=config.licence, is_timm=is_timm,
        num_parameters=sum(each.numel() for each in network.model.parameters()),
    )  # fmt: skip
    write_text(out / CARD_FILE, text)
    address = None
    if config.upload:
        address = upload(out, config.to, is_private=not config.public, message="Upload by Limbeck")
    warnings = tuple(filter(None, (each.warning for each in line)))
    return Pushed(out, tuple(sorted(out.iterdir())), config.to, is_timm, warnings, address)


def _check_same(out: Path, weight_hash: str, config: PushConfig) -> None:
    """Raise UserError where the folder has another student's files, unless they may be replaced."""
    from limbeck.models.finished import RECORD_FILE

    files = [out / name for name in (RECORD_OF_TIMM, RECORD_FILE) if (out / name).is_file()]
    is_other = any(read_json(file).get("weight_hash") != weight_hash for file in files)
    if is_other and not config.overwrite:
        raise UserError(
            f"{out} holds another student's files; choose another --out, or replace them with "
            "--overwrite."
        )


def report(done: Pushed) -> str:
    """What was written, and what comes next."""
    sizes = ", ".join(f"{each.name} ({each.stat().st_size / 1024:,.0f} KiB)" for each in done.files)
    lines = [f"{done.folder}: {sizes}."]
    if not done.is_timm:
        lines.append(
            "timm can't be told all of this network by a config, so it is for limbeck.load alone."
        )
    if done.address is not None:
        lines.append(f"They are in {done.address}.")
    else:
        lines.append(
            f"Nothing was sent. Read {done.folder / CARD_FILE}; the same command with --upload "
            f"sends them to {done.to}."
        )
    return "\n".join(lines)
