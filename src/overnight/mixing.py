"""Several corpora as one: which corpus sequence number k is of, and its number there. Nothing here has state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from overnight.errors import UserError
from overnight.loader import Numbers, TokenDataset

LONGEST = 100_000  # sequences after which the order of the corpora repeats


class MixedDataset:
    """The training sequences of several corpora in fixed proportions, as pure functions of their numbers.

    Corpus i gets `weights[i]` of every sum(weights) sequences, and of the first k sequences, for any k, its share to
    less than one sequence. The sequences of each corpus come in that corpus' own order, with its own epochs.
    """

    def __init__(self, datasets: dict[str, TokenDataset], weights: Sequence[int]) -> None:
        self.names, self.datasets = list(datasets), list(datasets.values())
        self.weights = np.array(weights, dtype=np.int64)
        self.T = self.datasets[0].T
        self.period = int(self.weights.sum())
        self.turns = turns(weights)
        self.before = np.stack([np.cumsum(self.turns == corpus) for corpus in range(len(weights))])
        self.before -= self.turns == np.arange(len(weights))[:, None]

    def sequences(self, step: int, per_step: int) -> Numbers:
        return self.datasets[0].sequences(step, per_step)

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """For each sequence its corpus and its number in that corpus."""
        rounds, turn = numbers // self.period, numbers % self.period
        corpus = self.turns[turn]
        return corpus, rounds * self.weights[corpus] + self.before[corpus, turn]

    def tokens(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        corpora, local = self.locate(numbers)
        inputs, targets = (np.empty((len(numbers), self.T), dtype=np.int64) for _ in range(2))
        for corpus in np.unique(corpora).tolist():
            rows = corpora == corpus
            inputs[rows], targets[rows] = self.datasets[corpus].tokens(local[rows])
        return inputs, targets

    def epochs(self, sequences: int) -> dict[str, float]:
        """Under `epoch_NAME` for each corpus, under `epoch` the most of these."""
        rounds, turn = divmod(sequences, self.period)
        taken = rounds * self.weights + [int((self.turns[:turn] == corpus).sum()) for corpus in range(len(self.names))]
        passes = [dataset.epochs(int(own))["epoch"] for dataset, own in zip(self.datasets, taken.tolist(), strict=True)]
        return {"epoch": max(passes)} | {f"epoch_{name}": own for name, own in zip(self.names, passes, strict=True)}


def turns(weights: Sequence[int]) -> npt.NDArray[np.int64]:
    """Whose turn it is, for sum(weights) turns: at every moment each has had its share to less than one turn.

    Of those whose share, with this turn, is far enough ahead of what they had, the one that cannot wait the longest
    (Tijdeman 1980, "The chairman assignment problem").
    """
    period, spread = sum(weights), max(1, 2 * len(weights) - 2)
    if period > LONGEST:
        raise UserError(f"the weights in --data repeat only after {period:,} sequences: write them with fewer digits")
    had, chosen = [0] * len(weights), np.empty(period, dtype=np.int64)
    for turn in range(period):
        ready = [
            corpus
            for corpus, weight in enumerate(weights)
            if (weight * (turn + 1) - had[corpus] * period) * spread >= period
        ]
        corpus = min(ready, key=lambda corpus: (spread - 1 + had[corpus] * spread) / weights[corpus])
        had[corpus] += 1
        chosen[turn] = corpus
    return chosen
