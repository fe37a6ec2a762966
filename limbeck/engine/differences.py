"""In what two runs differ, said option by option: what is in a folder, or on another rank."""

from typing import Any

from limbeck.documents import as_read, differing, flat

MAY_CHANGE = (
    "out", "overwrite", "targets.cache", "data.num_workers", "data.max_bad_ratio",
    "probes.batch_size", "probes.num_train", "probes.num_test", "evaluation.batch_size",
    "train.compile", "train.save_every", "train.log_every", "train.probe_every", "train.device",
    "train.wandb_project",
    "teacher.source",  # what it computes is in the fingerprint, wherever its weights lie
    "precision",  # what auto stands for in a study: kept, not compared
    "train.fit_memory",
    "train.accumulate_steps",  # as the number of processes, which is not in the config at all
)  # fmt: skip
"""Options that may differ when a run is continued: they do not change what is learned."""

ADDED: dict[str, Any] = {
    "optim.schedule": "cosine", "optim.drop_at": [], "train.patience": None,
    "train.fit_memory": False,
}  # fmt: skip
"""Options that earlier versions did not have, and what they did: a run of theirs goes on."""

MAY_DIFFER = ("overwrite", "teacher.source", "targets.source", "targets.cache", "data.num_workers")
"""Options that may differ between the ranks of a run: where a machine has its copies."""


def differences(
    there: dict[str, Any], here: dict[str, Any], but: tuple[str, ...] = (), what: str = ""
) -> list[tuple[str, str, str]]:
    """(name, value there, value here) of what differs in plain data, values as JSON.

    ``but`` names what may. A fine-tuning within something larger has sections of its own, such as
    tune.train, in which the same options may. ``what`` goes before the names.
    """
    old, new = flat(as_read(there)), flat(as_read(here))
    if old.get("teacher.source") is None and new.get("teacher.source") is None:
        for each in (old, new):  # earlier versions wrote one of a teacher that there is not
            each.pop("teacher.precision", None)
    for one, other in ((old, new), (new, old)):
        for name in other.keys() - one.keys():
            for added, value in ADDED.items():
                if _is_one_of(name, (added,)):
                    one[name] = value
    return [
        (f"{what}{name}", before, after)
        for name, before, after in differing(old, new)
        if not _is_one_of(name, but)
    ]


def _is_one_of(name: str, names: tuple[str, ...]) -> bool:
    return name in names or any("." in each and name.endswith(f".{each}") for each in names)
