"""`metrics.csv` of a run of GRPO: what a probe or a controller finds out gets columns when it first comes."""

from __future__ import annotations

import csv
from collections.abc import Mapping

from fluxentropy.metricsfile import MetricsFile
from fluxentropy.store import write_text

COLUMNS = (
    *("step", "reward", "reward_sd", "eval_reward", "eval_solved", "length", "tokens"),
    *("entropy_per_token", "entropy_per_token_se", "entropy_per_sequence", "entropy_per_sequence_se"),
    *("entropy_naive", "entropy_naive_se", "variance_ratio"),
    *("kl", "beta", "clip_fraction", "loss", "grad_norm", "lr", "logp_gap"),
)
TIMINGS = ("step", "seconds", "rollout", "update", "probe", "evaluation", "tokens_per_second")


class GrowingMetrics(MetricsFile):
    """A CSV file whose columns grow on the right; earlier rows have empty cells there."""

    def start(self, step: int) -> None:
        if self.path.is_file():
            with open(self.path, encoding="utf-8", newline="") as file:
                self._grow(next(csv.reader(file), []))
        super().start(step)

    def append(self, row: Mapping[str, float | int | str]) -> None:
        if new := self._grow(list(row)):
            _, *lines = self.path.read_text(encoding="utf-8").splitlines()
            header = self._line(dict(zip(self.columns, self.columns, strict=True)))
            write_text(self.path, header + "".join(f"{line}{',' * new}\n" for line in lines))
        super().append(row)

    def _grow(self, names: list[str]) -> int:
        """Add the columns that are new, and say how many they are."""
        new = [name for name in names if name not in self.columns]
        self.columns += tuple(new)
        return len(new)
