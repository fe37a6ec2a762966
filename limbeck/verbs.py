"""What the command line can do: a verb is a recipe in a room. Plain data, before all imports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Verb:
    """A recipe on the command line: its room, summary, options class, and the verb of its presets.

    A verb that can find problems exits with 1 where its result lists some.
    """

    room: str
    summary: str
    config: str
    presets: str | None = None
    can_find_problems: bool = False
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Where options hang on the task: their classes by what --task says, the first by default."""
    function: str = ""
    """The name of its function and module; its first word if not given."""


ROOMS = {
    "train": "train a network",
    "targets": "a teacher's answers, stored",
    "look": "look before, at and into",
    "study": "many runs, judged",
    "ship": "take it elsewhere",
}
"""The rooms that have verbs, and what one does in them."""

VERBS = {
    "distill": Verb(
        "train", "a small ViT from unlabelled images and a big one", "DistillConfig", "distill"
    ),
    "finetune": Verb(
        "train", "train a student for classification", "FinetuneConfig", "finetune"
    ),
    "segment": Verb(
        "train", "train a student for masks of classes", "SegmentConfig", "segment"
    ),
    "detect": Verb(
        "train", "train a student for boxes of objects, masks too", "DetectConfig", "detect"
    ),
    "store-targets": Verb(
        "targets", "run a teacher once, keep what it says of each view", "StoreTargetsConfig",
        "distill", True,
    ),
    "convert-targets": Verb(
        "targets", "a store from soft labels in TinyViT's released layout", "ConvertTargetsConfig"
    ),
    "doctor": Verb(
        "look", "check images, memory, disk and time before a run", "DoctorConfig", "distill", True
    ),
    "doctor finetune": Verb(
        "look", "likewise before limbeck finetune", "DoctorFinetuneConfig", "finetune", True
    ),
    "doctor segment": Verb(
        "look", "likewise before limbeck segment, masks too", "DoctorSegmentConfig", "segment", True
    ),
    "doctor detect": Verb(
        "look", "likewise before limbeck detect, boxes too", "DoctorDetectConfig", "detect", True
    ),
    "evaluate": Verb(
        "look", "does it help? kNN, linear and few-label probes, verdict", "EvaluateConfig"
    ),
    "analyze": Verb(
        "look", "look into networks: layers, attention, probes by block", "AnalyzeConfig"
    ),
    "cost": Verb(
        "look", "parameters, MACs, memory and speed of networks, here", "CostConfig", None, True
    ),
    "inspect": Verb("look", "what is in this weights file or run?", "InspectConfig"),
    "report": Verb(
        "look", "one page about runs, comparisons and scores",
        "ReportConfig", function="write_report",  # as every module's report() is of its result
    ),
    "presets": Verb("look", "recipes as numbers, by verb; or one of them", "PresetsConfig"),
    "compare": Verb(
        "study", "which method is best on these images?", "CompareConfig", "compare", True
    ),
    "two-stage": Verb(
        "study", "stage one without labels, stage two with them and a teacher", "TwoStageConfig",
        "two-stage", tasks={"classify": "TwoStageConfig", "segment": "TwoStageSegmentConfig"},
    ),
    "search": Verb(
        "study", "a smaller, faster shape, contracted step by step", "SearchConfig", "distill"
    ),
    "demo": Verb("study", "the whole story on 5,000 real digits, in minutes", "DemoConfig"),
    "predict": Verb(
        "ship", "what a network says of images: pictures, masks, JSON", "PredictConfig"
    ),
    "embed": Verb("ship", "a vector for each image, in parquet files", "EmbedConfig"),
    "serve": Verb("ship", "answers over HTTP, and a page to drop an image on", "ServeConfig"),
    "export": Verb(
        "ship", "a file for ONNX Runtime, OpenVINO, PyTorch or timm, proven", "ExportConfig"
    ),
    "convert": Verb(
        "ship", "write a student as a file in MAE's or TinyViT's layout", "ConvertConfig"
    ),
    "push": Verb(
        "ship", "a model card, and a repository of the hub if asked", "PushConfig"
    ),
}  # fmt: skip


def recipe_of(verb: str) -> ModuleType:
    """The module of a verb."""
    return import_module(f"limbeck.recipes.{VERBS[verb].room}.{function_of(verb)}")


def function_of(verb: str) -> str:
    """The name of a verb's function, and of its module."""
    own = VERBS[verb].function if verb in VERBS else ""
    return own or verb.partition(" ")[0].replace("-", "_")


def config_class(verb: str, task: str | None = None) -> type:
    """The class of a verb's options, of a task where it has several."""
    entry = VERBS[verb]
    kind: type = getattr(recipe_of(verb), entry.tasks[task] if task else entry.config)
    return kind
