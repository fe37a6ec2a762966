"""What shapes cost, measured once each and remembered in a file of the search."""

from pathlib import Path

from limbeck.documents import write_json
from limbeck.evaluation.latency import Pass, describe_machine, interleaved, threads
from limbeck.exports.passes import RUNTIMES, open_passes
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.recipes.run.budget import counted, runtime_of
from limbeck.recipes.run.costs import Amount, read_measured
from limbeck.recipes.study.options import LatencyOptions


class Meter:
    """Costs by shape: "params" and "macs" are counted, "latency_ms" is measured on the CPU.

    Of the student without a classifier. A latency is the ratio to the seed's, which takes turns
    with it, times the seed's own when it was first measured: so the machine's drift cancels.
    """

    def __init__(self, file: Path, seed: StudentOptions, options: LatencyOptions) -> None:
        self.file, self.seed, self.options = file, seed, options
        self.known: dict[str, dict[str, float]] = read_measured(file, dict[str, dict[str, Amount]])
        self._reference: Pass | None = None

    def cost(self, shape: StudentOptions, name: str) -> float:
        """The cost of a shape by name; raises UserError for a shape that can't be built."""
        own = self.known.setdefault(shape.text, {})
        if name not in own:
            own |= {name: self._latency(shape)} if name == "latency_ms" else counted(shape)
            write_json(self.file, self.known)
        return own[name]

    def sentence(self) -> str:
        """How latency was measured, for people."""
        used = self.options
        return (
            f"Latency: {RUNTIMES[runtime_of(used)]}, fp32, batch {used.batch_size}, "
            f"{used.threads} thread(s), median of {used.num_turns} turns with the seed's, on "
            f"{describe_machine()}. "
            "Parameters, MACs and latency are of the student without a classifier."
        )

    def _latency(self, shape: StudentOptions) -> float:
        with threads(self.options.threads):
            if self._reference is None:
                self._reference = self._pass(self.seed)
            is_seed = shape.text == self.seed.text
            work = self._reference if is_seed else self._pass(shape)
            own, reference = interleaved([work, self._reference], self.options.num_turns)
        seed_ms = 1e3 * own if is_seed else self.cost(self.seed, "latency_ms")
        return seed_ms if is_seed else seed_ms * own / reference

    def _pass(self, shape: StudentOptions) -> Pass:
        encoder = build_student(shape, seed=0).eval()
        used = self.options
        return open_passes(encoder, runtime_of(used), used.threads)(used.batch_size)
