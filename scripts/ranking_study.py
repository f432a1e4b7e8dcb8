"""How far can each rule for choosing a checkpoint be trusted? Simulated trainings with a known truth, and real curves.

    python scripts/ranking_study.py                      simulated trainings; the tables of docs/ranking.md
    python scripts/ranking_study.py --curves DIR         and DIR's spx_*.csv against their held-out losses

A simulated training has 1840 steps of independent losses with the spread of real ones (standard deviation 1.24 times
the mean, skewed), 460 batches an epoch and a checkpoint every 184 steps. Its training loss is flat, falls, or is a U;
its loss on unseen pictures is a U of its own, lowest anywhere on the way, as it was in 67 of 68 real trainings. All
numbers come out the same each time.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spyke_kohya.rank.losses import read_losses_csv
from spyke_kohya.rank.paired import PairedRows
from spyke_kohya.rank.ranking import CV, TIED_ABOVE
from spyke_kohya.rank.ties import Noise
from spyke_kohya.rank.windows import trailing_bounds, window_cov, window_means

Array = NDArray[np.float64]

STEPS, WINDOW, COUNT = 1840, 460, 10
CHECKPOINTS = np.arange(1, COUNT + 1) * STEPS // COUNT
LEVEL = 0.08
IMAGE_SPREAD = 1.8
"""How far pictures differ in what a checkpoint does to them, as a multiple of the effect (RANKING: 9 % for 5 %)."""


def picks(averages: Array, tied: NDArray[np.bool_]) -> dict[str, int]:
    """What each rule would choose, as an index."""
    return {
        "lowest": int(np.argmin(averages)),
        "earliest tied": int(np.argmax(tied)),
        "final": len(averages) - 1,
        "middle": len(averages) // 2,
    }


@dataclass
class Tally:
    """What happened over many trainings; every list has an entry a training."""

    kept: list[float] = field(default_factory=list)
    claimed: list[bool] = field(default_factory=list)
    naive: list[bool] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    regret: dict[str, list[float]] = field(default_factory=dict)

    def add(self, truth: Array, averages: Array, tied: NDArray[np.bool_], unseen: Array) -> None:
        """``truth`` is the mean of each average, ``unseen`` the true loss on unseen pictures."""
        best = truth <= truth.min() * (1 + 1e-9)
        self.kept.append(float(tied[best].mean()))
        self.claimed.append(int(tied.sum()) == 1)
        self.naive.append(0 < int(np.argmin(averages)) < len(averages) - 1)
        self.size.append(int(tied.sum()))
        for name, pick in picks(averages, tied).items():
            self.note_regret(name, unseen, pick)
        self.regret.setdefault("random", []).append(100 * float(unseen.mean() / unseen.min() - 1))

    def note_regret(self, name: str, unseen: Array, pick: int) -> None:
        self.regret.setdefault(name, []).append(100 * float(unseen[pick] / unseen.min() - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated trainings of each kind (default: 2000)")
    parser.add_argument("--curves", type=Path, help="a folder of spx_*.csv and spx_heldout.csv")
    args = parser.parse_args()
    study_training_loss(args.runs)
    study_heldout_loss(max(200, args.runs // 4))
    if args.curves:
        study_curves(args.curves)


def study_training_loss(runs: int) -> None:
    progress = np.arange(1, STEPS + 1) / STEPS
    shapes = {
        "flat": np.ones(STEPS),
        "falls 10 %": 1 - 0.10 * progress,
        "U, 10 % deep": 0.9 + 0.1 * (2 * progress - 1) ** 2,
    }
    tallies = {name: tally_training(curve * LEVEL, runs) for name, curve in shapes.items()}
    print(f"\n### Ranking by avr_loss, {runs} simulated trainings of each kind\n")
    head = ["training loss", "true minimiser kept", "tied, of 10", "says there is a winner", "naive rule sees a U"]
    table(head, ([name, *calibration(tally)] for name, tally in tallies.items()))
    print("\n### What each rule's choice loses on unseen pictures (mean, % above the best checkpoint)\n")
    rules = list(next(iter(tallies.values())).regret)
    table(["rule", *tallies], ([rule, *(f"{np.mean(t.regret[rule]):.1f}" for t in tallies.values())] for rule in rules))


def unseen_curve(rng: np.random.Generator) -> Array:
    """A U on unseen pictures, 5 % deep at the most, whose lowest point may lie anywhere but at the ends."""
    return np.asarray(1 + 0.05 * (2 * (CHECKPOINTS / STEPS - rng.uniform(0.2, 0.9))) ** 2, dtype=np.float64)


def tally_training(curve: Array, runs: int) -> Tally:
    rng, noise, tally = np.random.default_rng(1), Noise(window_cov(CHECKPOINTS, WINDOW)), Tally()
    bounds = trailing_bounds(CHECKPOINTS, WINDOW)
    truth = window_means(curve, 0, bounds)
    shape = 1 / CV**2
    for _ in range(runs):
        losses = rng.gamma(shape, 1 / shape, STEPS) * curve
        averages = window_means(losses, 0, bounds)
        sigma = float(np.std(np.diff(losses), ddof=1)) / math.sqrt(2)
        tally.add(truth, averages, noise.tied_p(averages, sigma) > TIED_ABOVE, unseen_curve(rng))
    return tally


def calibration(tally: Tally) -> list[str]:
    kept, error = np.mean(tally.kept), np.std(tally.kept) / math.sqrt(len(tally.kept))
    return [
        f"{100 * kept:.1f} % ± {100 * error:.1f}",
        f"{np.mean(tally.size):.1f}",
        f"{100 * np.mean(tally.claimed):.1f} %",
        f"{100 * np.mean(tally.naive):.0f} %",
    ]


def study_heldout_loss(runs: int) -> None:
    rows = []
    for name in ("flat", "U"):
        for pictures in (4, 8, 16, 32):
            tally = tally_heldout(pictures, runs, flat=name == "flat")
            rows.append([name, str(pictures), *calibration(tally)[:3], f"{np.mean(tally.regret['lowest']):.1f}"])
    print(f"\n### Ranking by the loss on held-out pictures, {runs} simulated evaluations of each kind\n")
    head = [
        "true loss",
        "pictures",
        "true minimiser kept",
        "tied, of 10",
        "says there is a winner",
        "regret of the lowest (%)",
    ]
    table(head, rows)


def tally_heldout(pictures: int, runs: int, *, flat: bool) -> Tally:
    """Pictures differ smoothly in what training does to them: each has its own slope and its own bend."""
    rng, tally = np.random.default_rng(2), Tally()
    position = CHECKPOINTS / STEPS
    size = IMAGE_SPREAD * 0.05
    for _ in range(runs):
        truth = np.ones(COUNT) if flat else unseen_curve(rng)
        slopes, bends = rng.standard_normal((2, pictures, 1)) * size
        own = slopes * (position - 0.5) + bends * ((position - 0.5) ** 2 - 1 / 12)
        rows = truth + own + 0.002 * rng.standard_normal((pictures, COUNT))
        tied = PairedRows(rows).tied_p() > TIED_ABOVE
        tally.add(truth, rows.mean(axis=0), tied, truth)
    return tally


def study_curves(folder: Path) -> None:
    """Real trainings: 10 checkpoints each, the truth is the held-out loss at the nearest step where it was measured."""
    heldout = read_heldout(folder / "spx_heldout.csv")
    tally, rows = Tally(), []
    for file in sorted(folder.glob("spx_*.csv")):
        name = file.stem.removeprefix("spx_").replace("__", "/")
        if name not in heldout or file.stem == "spx_heldout":
            continue
        curve = read_losses_csv(file)
        assert curve.loss is not None
        steps = np.arange(1, COUNT + 1) * curve.last_step // COUNT
        averages = np.array([curve.average_at(int(step)) for step in steps], dtype=np.float64)
        sigma = float(np.std(np.diff(curve.loss), ddof=1)) / math.sqrt(2)
        tied = Noise(window_cov(steps, WINDOW)).tied_p(averages, sigma) > TIED_ABOVE
        unseen = nearest(heldout[name], steps)
        tally.add(averages, averages, tied, unseen)
        chosen = picks(averages, tied)
        best = steps[int(np.argmin(unseen))]
        worse = unseen[chosen["lowest"]] > unseen.mean()
        rows.append(
            [
                name,
                f"{tied.sum()} of {COUNT}",
                str(steps[chosen["lowest"]]),
                str(steps[-1]),
                str(best),
                "yes" if worse else "no",
            ]
        )
    print(f"\n### {len(rows)} real SD1.5 trainings (spacepxl/demystifying-sd-finetuning)\n")
    head = ["training", "tied by avr_loss", "lowest avr_loss", "final", "lowest held-out loss", "choice below average?"]
    table(head, rows)
    print("\nMean regret (%): " + ", ".join(f"{rule} {np.mean(values):.2f}" for rule, values in tally.regret.items()))


def read_heldout(path: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            if row["heldout_loss"]:
                found.setdefault(row["run"], []).append((int(row["step"]), float(row["heldout_loss"])))
    return found


def nearest(measured: list[tuple[int, float]], steps: NDArray[np.int64]) -> Array:
    at, losses = np.array([step for step, _ in measured]), np.array([loss for _, loss in measured])
    return np.asarray(losses[np.abs(at[None] - steps[:, None]).argmin(axis=1)], dtype=np.float64)


def table(head: list[str], rows: Iterable[list[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
