"""``limbeck report``: one page about runs (under way, too), studies, evaluations, analyses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from limbeck.config import options
from limbeck.documents import parse_json, read_json
from limbeck.errors import UserError
from limbeck.files import read_file, write_text
from limbeck.recipes.run import checks

if TYPE_CHECKING:
    from limbeck.evaluation.page.render import Block, Section

log = logging.getLogger("limbeck")

MOST_PICTURES, MOST_BYTES, MOST_SKIPPED = 12, 3 * 2**20, 50
"""Pictures of a folder, bytes of one, and files that could not be read, on the page."""
MARKER = "<!doctype html>"
STUDIES = ("comparison.json", "two_stage.json", "search.json")
WATTS = {"cpu": 65, "cuda": 350}
"""What a machine is taken to draw under load, for an estimate of energy that says so."""
HEADLINES = ("top1", "ap", "miou", "linear_top1", "neighbours")


@options
class ReportConfig:
    """One page of HTML about runs, comparisons, evaluations and analyses; it needs no network."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders: of any verb that leaves one; a run under way, too."""
    out: Path | None = None
    """The file; report.html in the first folder if not given."""
    title: str = ""
    """Its heading; the folders' names if not given."""


@dataclass(frozen=True)
class Reported:
    """Where the page is, and how large."""

    file: Path
    size: int


def check(config: ReportConfig) -> Path:
    """All that can be wrong with the options; the file. Raises UserError."""
    if not config.runs:
        raise UserError("No folder is named; run: limbeck report RUN.")
    for run in config.runs:
        checks.check_path(run, "limbeck report")
        if not Path(run).expanduser().is_dir():
            raise UserError(f"{run} is a file; name the folder of the run.")
    file = config.out or Path(config.runs[0]).expanduser() / "report.html"
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{file} is no name of a page; let it end in .html.")
    if file.is_dir() or (file.exists() and not read_file(file, 2**26)[:15] == MARKER.encode()):
        raise UserError(f"{file} is no page of this verb, so it stays; choose another --out.")
    return file


def write_report(config: ReportConfig) -> Reported:
    """Read the folders and write the page. Raises UserError where there is nothing to tell."""
    file = check(config)
    from limbeck.evaluation.page.render import render

    lead: list[str] = []
    sections: list[Section] = []
    for run in config.runs:
        folder = Path(run).expanduser()
        said, own = _of_folder(folder)
        if not own:
            raise UserError(
                f"{folder} has nothing of a run, a study, an evaluation or an analysis to tell."
            )
        several = f"{folder.name}: " if len(config.runs) > 1 else ""
        lead += [several + text for text in said]
        for section in own:
            section.title = several + section.title
        sections += own
    title = config.title or ", ".join(Path(run).expanduser().resolve().name for run in config.runs)
    write_text(file, render(title, lead, sections))
    return Reported(file, file.stat().st_size)


def _of_folder(folder: Path) -> tuple[list[str], list[Section]]:
    """What is said first, and the sections, of whatever a folder holds."""
    lead: list[str] = []
    sections: list[Section] = []
    readers = [_evaluation, _study, _training, _analysis]
    for reader in readers:
        said, own = reader(folder)
        lead += said
        sections += own
    if sections:
        sections += [_pictures(folder), _skipped(folder)]
    return lead, sections


def _evaluation(folder: Path) -> tuple[list[str], list[Section]]:
    from limbeck.evaluation.page.charts import bars, heat, points
    from limbeck.evaluation.page.render import Section, Text

    file = folder / "scores.json"
    if not file.is_file() or "rows" not in (found := read_json(file)):
        return [], []
    rows: list[dict[str, Any]] = found["rows"]
    said = [str(found["verdicts"][found["deciding"]]["why"]), *filter(None, [found.get("paired")])]
    groups = {
        row["role"]: {
            name: [100 * run[name] for run in row["runs"]]
            for name in row["scores"] if not name.endswith("top5")
        }
        for row in rows
    }  # fmt: skip
    blocks: list[Block] = [bars("Scores of frozen networks", groups, "%")]
    if "parameters" in rows[0]["cost"]:
        deciding = found["deciding"]
        drawn = {
            row["role"]: (row["cost"]["parameters"] / 1e6, 100 * row["scores"][deciding]["mean"])
            for row in rows if deciding in row["scores"]
        }  # fmt: skip
        blocks.append(points("Size and score", drawn, "M parameters", f"{deciding} %"))
    blocks += [Text(_text_of(folder / "table.md"))]
    sections = [Section("Scores", blocks)]
    by_class = rows[0].get("by_class")
    if by_class:
        names = [str(each["class"]) for each in by_class["classes"]]
        counts = [row for row in by_class["confusion"] if sum(row)]
        if len(names) == len(counts[0]):  # every class was there to be scored
            shares = [[100 * count / sum(row) for count in row] for row in counts]
            blocks = [heat(f"What the student takes for what ({by_class['how']})", shares, names)]
            sections.append(Section("Classes", blocks))
    return said, sections


def _study(folder: Path) -> tuple[list[str], list[Section]]:
    from limbeck.evaluation.page.charts import bars
    from limbeck.evaluation.page.render import Section, Text

    file = next((folder / name for name in STUDIES if (folder / name).is_file()), None)
    if file is None:
        return [], []
    found = read_json(file)
    text = _text_of(folder / "table.md")
    paragraphs = [each.strip() for each in text.split("\n\n")]
    said = [each for each in paragraphs if each and not each.startswith("|")][:1]
    blocks: list[Block] = []
    arms = found.get("arms", [])
    by_arm = arms.items() if isinstance(arms, dict) else [(a["name"], a["seeds"]) for a in arms]
    groups: dict[str, dict[str, list[float]]] = {}
    for name, seeds in by_arm:
        for each in seeds.values():
            for score, value in each["scores"].items():
                mean = value["mean"] if isinstance(value, Mapping) else value
                if score.endswith(("top1", "miou", "neighbours")):
                    groups.setdefault(name, {}).setdefault(score, []).append(100 * mean)
    if groups:
        blocks.append(bars("Scores by arm, with their spread over seeds", groups, "%"))
    return said, [Section("Comparison", [*blocks, Text(text)])]


def _training(folder: Path) -> tuple[list[str], list[Section]]:
    from limbeck.evaluation.page.charts import lines
    from limbeck.evaluation.page.render import Code, Section, Table

    file = folder / "config.json"
    if not file.is_file() or "resolved" not in (config := read_json(file)):
        return [], []
    metrics = [*_metrics(folder / "metrics.jsonl")]
    total = int(config["resolved"]["total_steps"])
    done = max((int(each["step"]) for each in metrics), default=0)
    record = read_json(folder / "student.json") if (folder / "student.json").is_file() else {}
    state = "finished" if record else f"under way or stopped: step {done:,} of {total:,}"
    scores = record.get("scores") or next(
        (each["probe"] for each in reversed(metrics) if "probe" in each), {}
    )
    said = [f"limbeck {config['verb']}: {state}{_headline(scores)}."]
    teacher = record.get("teacher") or config.get("teacher") or {}
    has_method = teacher.get("source") or config["verb"] == "distill"
    versions = record.get("versions", {})
    facts = {
        "verb": config["verb"], "method": config.get("method") if has_method else None,
        "teacher": teacher.get("source"), "state": state, "steps": f"{done:,} of {total:,}",
        "images per step": config["train"]["global_batch_size"],
        "precision": config["train"]["precision"], "data": config["data"]["root"],
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()) or None,
    }  # fmt: skip
    rows = [{"what": key, "value": value} for key, value in facts.items() if value is not None]
    sections = [Section("What was run", [Table(rows), *_command(config, Code)])]
    losses, probes = _curves(metrics, "losses"), _curves(metrics, "probe")
    blocks: list[Block] = []
    if losses:
        blocks.append(lines("Loss and its parts", losses, "step", "loss"))
    several = {name: pair for name, pair in probes.items() if len(pair[0]) > 1 and "/" not in name}
    if several:
        blocks.append(lines("Scores on the way", several, "step", "score"))
    elif scores:
        told = [{"score": name, "value": value} for name, value in scores.items()]
        blocks.append(Table(told, "Scores"))
    rates = [(each["step"], each["lr"]) for each in metrics if "lr" in each]
    if rates:
        steps, values = zip(*rates, strict=True)
        blocks.append(lines("Learning rate", {"lr": (steps, values)}, "step", "learning rate"))
    sections.append(Section("Curves and scores", blocks))
    sections.append(Section("Cost", [Table(_costs(metrics, config, done))]))
    lineage = [
        {k: each.get(k) for k in ("role", "source", "licence", "terms")}
        for each in record.get("lineage", [])
    ]
    if lineage:
        sections.append(Section("Whose weights went into it", [Table(lineage)]))
    return said, sections


def _analysis(folder: Path) -> tuple[list[str], list[Section]]:
    from limbeck.evaluation.page.render import Section, Text

    file = folder / "analysis.md"
    return ([], [Section("Analysis", [Text(_text_of(file))])]) if file.is_file() else ([], [])


def _pictures(folder: Path) -> Section:
    from limbeck.evaluation.page.render import Picture, Section

    blocks: list[Block] = []
    for file in sorted(folder.glob("*.png"))[:MOST_PICTURES]:
        if file.stat().st_size <= MOST_BYTES:
            content = read_file(file, MOST_BYTES)
            blocks.append(Picture(content, f"{file.stem.replace('_', ' ')}, as in {file.name}"))
    return Section("Pictures", blocks)


def _skipped(folder: Path) -> Section:
    from limbeck.evaluation.page.render import Section, Table, Text

    file = folder / "skipped.jsonl"
    rows = [*_metrics(file)] if file.is_file() else []
    if not rows:
        return Section("Skipped files")
    shown = [{"file": r.get("key"), "why": r.get("reason")} for r in rows[:MOST_SKIPPED]]
    more = f" The first {MOST_SKIPPED} are:" if len(rows) > MOST_SKIPPED else ""
    return Section(
        "Skipped files", [Text(f"{len(rows)} files could not be used.{more}"), Table(shown)]
    )


def _command(config: dict[str, Any], code: type) -> list[Any]:
    from limbeck.recipes.look.command import command_of

    try:
        return [code(command_of(config))]
    except UserError as error:  # of another version
        log.info("No command to repeat it: %s", error)
        return []


def _costs(
    metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any], done: int
) -> list[dict[str, Any]]:
    speeds = [each["images_per_second"] for each in metrics if each.get("images_per_second")]
    if not speeds:
        return []
    mean = len(speeds) / sum(1 / each for each in speeds)
    hours = done * config["train"]["global_batch_size"] / mean / 3600
    time = f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    kind = "cuda" if config["train"]["device"] == "cuda" else "cpu"
    energy = f"about {hours * WATTS[kind]:.3g} Wh, were it {WATTS[kind]} W all the time"
    return [
        {"what": "images per second", "value": f"{mean:.3g}"},
        {"what": "time of the steps", "value": time},
        {"what": "energy", "value": energy},
    ]


def _headline(scores: Mapping[str, float]) -> str:
    name = next((name for name in HEADLINES if name in scores), None)
    return "" if name is None else f", {name} {100 * scores[name]:.1f} %"


def _curves(
    metrics: Sequence[Mapping[str, Any]], group: str
) -> dict[str, tuple[list[float], list[float]]]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for each in metrics:
        for name, value in (each.get(group) or {}).items():
            xs, ys = found.setdefault(name, ([], []))
            xs.append(each["step"])
            ys.append(value)
    return found


def _metrics(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, but for one that is being written."""
    if not file.is_file():
        return
    for line in read_file(file, 2**28).split(b"\n"):
        try:
            entry = parse_json(line) if line.strip() else None
        except UserError:
            continue
        if isinstance(entry, dict):
            yield entry


def _text_of(file: Path) -> str:
    return read_file(file, 2**22).decode(errors="replace") if file.is_file() else ""


def report(done: Reported) -> str:
    """Where the page is."""
    return f"{done.file} ({done.size / 2**20:.1f} MiB): open it in any browser."
