"""Whose weights went into a network, and on what terms: lineage, not legal advice.

A record says of a network where it comes from (``EncoderFacts.origin``). That of a run names its
teacher and its start, which may be runs themselves, so that the whole line can be followed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Terms = Literal["open", "non-commercial", "own terms", "unknown"]

OPEN = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd", "isc", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0"),
}
PUBLISHED = {
    "mae_full": "cc-by-nc-4.0", "mae_encoder": "cc-by-nc-4.0", "hiera": "cc-by-nc-4.0",
    "dinov2": "apache-2.0", "tinymim": "no licence file", "tinymim_tstar": "no licence file",
    "g2sd": "no licence file", "g2sd_specific": "no licence file",
}  # fmt: skip
"""Layout of a weights file -> on what terms the files are published that it was made for. Anybody
may write such a file, so that this is a hint, not what is known."""


@dataclass(frozen=True)
class Ancestor:
    """Weights from elsewhere. ``role``: "start", "teacher", "teacher of the start" and so on;
    ``licence`` None: not known."""

    role: str
    source: str
    licence: str | None
    weight_hash: str | None
    layout: str | None

    @property
    def terms(self) -> Terms:
        """What its licence is like."""
        return terms_of(self.licence)

    @property
    def warning(self) -> str:
        """What whoever uses it for more than study should know, in a sentence; "" of open terms."""
        name = f"The {self.role} {self.source}"
        if self.terms == "open":
            return ""
        if self.terms == "unknown":
            hint = PUBLISHED.get(self.layout or "")
            known = f" (files published in this layout: {hint})" if hint else ""
            return f"{name}: its licence is not known{known}; ask before you ship what comes of it."
        kind = "is for non-commercial use" if self.terms == "non-commercial" else "has own terms"
        return (
            f"{name} {kind} ({self.licence}); read them before you ship what comes of it. This is "
            "lineage, not legal advice."
        )

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "role": self.role, "source": self.source, "licence": self.licence,
            "terms": self.terms, "weight_hash": self.weight_hash, "layout": self.layout,
        }  # fmt: skip


def terms_of(licence: str | None) -> Terms:
    """What kind of licence a name is, as timm, the hub's cards and this package write them."""
    name = (licence or "unknown").strip().lower()
    if name in OPEN:
        return "open"
    if name == "unknown":
        return "unknown"
    is_nc = re.search(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial|research|-amlr$", name)
    return "non-commercial" if is_nc else "own terms"


def ancestors(origin: Mapping[str, Any], role: str = "") -> list[Ancestor]:
    """All weights from elsewhere that a network of this origin has learnt from, its own first.

    ``role`` is the network's own, "" of the one that is asked about. Weights that were drawn, and
    those of runs, are not from elsewhere: it is who taught these, and what they started from.
    """
    if "made_by" in origin:
        if isinstance(known := origin.get("lineage"), list):  # all, as the run itself wrote it
            return [_read(each, role) for each in known if isinstance(each, Mapping)]
        found = []
        for own, key in (("start", "student"), ("teacher", "teacher")):
            if isinstance(before := origin.get(key), Mapping):
                found += ancestors(before, f"{own} of the {role}" if role else own)
        return found
    source = str(origin.get("source", ""))
    if not source or re.match(r"(fresh|untrained), seed ", source):
        return []
    return [_read({**origin, "role": role or "start"}, "")]


def _read(values: Mapping[str, Any], of: str) -> Ancestor:
    """What is anybody's to write is taken as far as it is text."""
    role, source, *others = (
        value if isinstance(value := values.get(key), str) else None
        for key in ("role", "source", "licence", "weight_hash", "layout")
    )
    role = f"{role} of the {of}" if of else role
    return Ancestor(role or "start", source or "of unknown origin", *others)
