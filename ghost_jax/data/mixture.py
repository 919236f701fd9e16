"""The weighted mixture: batch t is a pure function of the config, the seed and t, on any number of hosts.

An epoch of the mix holds each record `multiplier` times, and is packed at once. The lengths in it are always the same,
and so is the number of its rows: the epoch of any row follows from its number by division (docs/data.md).
"""

import bisect
import dataclasses
import functools
import itertools
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import grain
import numpy as np

from ghost_jax.config.load import SHARED
from ghost_jax.core.errors import UserError
from ghost_jax.data.packing import Example, fill, pack
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.array_record import Records, lengths_of, open_examples
from ghost_jax.data.storage.artifact_cache import SplitCounts, counts_of
from ghost_jax.text.mcq_format import LETTERS

ENDLESS = 1 << 40  # the length of a stream that repeats for ever
VERSION = 3  # of the order of batches; raise it with any change of what batch t is
READ_ROWS = 128  # rows read together: each read of ArrayRecord starts threads, which takes as long as 30 records
LEAST_DRAWS = 1024  # packed together, so that the last row, which is not full, does not matter
MOST_PASSES = 100  # that make an epoch of fractional multipliers
# The fields of `packing.fill` that the language-model loss reads. One conversation a row needs only the first three:
# its padding is on the right, where a causal model never attends to it.
ALONE = ("tokens", "targets", "weights")
PACKED = (*ALONE, "positions", "segments")


@dataclasses.dataclass(frozen=True, slots=True)
class Mix:
    """All that decides what batch t is."""

    stores: dict[str, Path] = dataclasses.field(hash=False)  # dataset -> its store
    # first update, from 0 in their order -> multipliers: dataset -> how often each record is in one epoch of the mix
    phases: dict[int, dict[str, float]] = dataclasses.field(hash=False)
    seed: int  # of the shuffles
    batch_size: int  # rows of the global batch
    seq_len: int  # tokens of a row
    packing: bool  # whether a row holds as many conversations as fit, or one
    truncation: str  # of a conversation longer than a row: "crop" cuts its beginning off, "drop" leaves it out
    loss_norm: str  # see `packing.fill`

    @property
    def datasets(self) -> list[str]:
        """The datasets that some phase mixes in, sorted."""
        return sorted({name for multipliers in self.phases.values() for name, m in multipliers.items() if m > 0})


def fingerprint(mix: Mix) -> str:
    """Returns the hash of all rows trained and validated on, and of all that decides how and in which order.

    A store that only evaluations read is left out: they may change before a resume.
    """
    used = {name: store for name, store in mix.stores.items() if name in (*mix.datasets, *SHARED)}
    rows = {name: [each.sha256 for each in counts_of(store, name).values()] for name, store in used.items()}
    # A dataset that is not mixed in is as good as one that the code does not have.
    phases = [(start, sorted((n, m) for n, m in multipliers.items() if m)) for start, multipliers in mix.phases.items()]
    return artifact_cache.fingerprint(
        [VERSION, rows, phases, mix.seed, mix.batch_size, mix.seq_len, mix.packing, mix.truncation, mix.loss_norm]
    )


def _train_counts(mix: Mix, name: str) -> SplitCounts:
    return counts_of(mix.stores[name], name)["train"]  # `prepare` refuses a dataset without


# ---- Which record, and which row ----


@dataclasses.dataclass(frozen=True, slots=True)
class _Dataset:
    """One training split: its records, and the numbers [n] of those that may be drawn and their places in a row [n]."""

    records: Records
    drawn: np.ndarray
    places: np.ndarray


def _drawn(mix: Mix, lengths: np.ndarray) -> np.ndarray:
    """Returns the numbers of the records [n] of some lengths [N] that the run reads: those that fit, or all."""
    return np.flatnonzero(lengths <= mix.seq_len + 1) if mix.truncation == "drop" else np.arange(len(lengths))


def _open(mix: Mix, name: str) -> _Dataset:
    lengths = lengths_of(mix.stores[name], name, "train")
    drawn = _drawn(mix, lengths)
    if not len(drawn):
        raise UserError(
            f"Every record of {name} is longer than a row of {mix.seq_len} tokens, and data.truncation is drop. Raise "
            "--config.data.seq_len or set --config.data.truncation=crop."
        )
    return _Dataset(open_examples(mix.stores[name], name, "train"), drawn, np.minimum(lengths[drawn] - 1, mix.seq_len))


def _drawn_records(mix: Mix, name: str, split: str) -> int:
    return len(_drawn(mix, lengths_of(mix.stores[name], name, split)))


def copies_of(multipliers: dict[str, float]) -> dict[str, int]:
    """Returns the passes over each dataset in an epoch of the mix; multipliers of 0 are left out.

    They are the multipliers times the smallest whole number, at most `MOST_PASSES`, at which each is whole to 1%, or
    times that at which they are nearest to it; divided by what divides all, so that 30 and 70 are packed as 3 and 7.
    """
    wanted = {name: m for name, m in sorted(multipliers.items()) if m > 0}

    def rounded(passes: int) -> dict[str, int]:
        return {name: max(1, round(passes * m)) for name, m in wanted.items()}

    def error(passes: int) -> float:
        return max(abs(copies / (passes * wanted[name]) - 1) for name, copies in rounded(passes).items())

    good = (passes for passes in range(1, MOST_PASSES + 1) if error(passes) <= 0.01)
    copies = rounded(next(good, None) or min(range(1, MOST_PASSES + 1), key=error))
    divisor = math.gcd(*copies.values())
    return {name: count // divisor for name, count in copies.items()}


class _Epochs:
    """The endless sequence of rows of one phase: row number -> its `(dataset, record number)`s."""

    def __init__(self, mix: Mix, number: int):
        self._mix, self._number = mix, number
        copies = copies_of(list(mix.phases.values())[number])
        self.datasets = {name: _open(mix, name) for name in copies}
        draws = sum(copies[name] * len(dataset.drawn) for name, dataset in self.datasets.items())
        self._copies = {name: count * math.ceil(LEAST_DRAWS / draws) for name, count in copies.items()}
        counts = [copies * len(self.datasets[name].drawn) for name, copies in self._copies.items()]
        # Draw d of the n of a dataset is at (d + 1/2) / n of the epoch: every part of it has about the same shares.
        at = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        self._order = np.argsort(at, kind="stable")
        self._names = np.repeat(np.arange(len(counts)), counts)[self._order]
        self.draws = sum(counts)
        self.places = sum(copies * int(self.datasets[name].places.sum()) for name, copies in self._copies.items())
        self._epoch = functools.lru_cache(maxsize=2)(self._packed)  # a batch may extend into the next one
        self.rows = len(self._epoch(0)[1]) - 1

    def drawn(self, number: int) -> np.ndarray:
        """Returns the dataset index and the record number of each draw of epoch `number`, [draws, 2]."""
        of_dataset = []
        for name, copies in self._copies.items():
            # The name is part of the seed, so that leaving a dataset out does not change the order of another.
            seed = int(artifact_cache.fingerprint([self._mix.seed, name, self._number])[:8], 16)
            for each in range(number * copies, (number + 1) * copies):
                of_dataset.append(np.random.default_rng([seed, each]).permutation(len(self.datasets[name].drawn)))
        return np.stack([self._names, np.concatenate(of_dataset)[self._order]], axis=1)

    def _packed(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the draws of an epoch in the order of its rows, and where each row starts among them [rows + 1]."""
        draws = self.drawn(number)
        if not self._mix.packing:
            return draws, np.arange(len(draws) + 1)
        names, chosen = draws.T
        places = np.zeros(len(draws), np.int64)
        for i, dataset in enumerate(self.datasets.values()):
            places[names == i] = dataset.places[chosen[names == i]]
        rows = pack(places.tolist(), self._mix.seq_len)
        # Packing goes from long to short records; rows are shuffled so that no batch holds the long ones alone.
        rows = [rows[i] for i in np.random.default_rng([self._mix.seed, self._number, number]).permutation(len(rows))]
        return draws[np.concatenate(rows)], np.cumsum([0, *map(len, rows)])

    def read(self, rows: Iterable[int]) -> list[list[Example]]:
        """Returns the examples of each of these rows, read together."""
        draws = []
        for row in rows:
            number, place = divmod(row, self.rows)
            ordered, starts = self._epoch(number)
            draws.append(ordered[starts[place] : starts[place + 1]])
        names, chosen = np.concatenate(draws).T
        examples: list[Example | None] = [None] * len(names)
        for i, dataset in enumerate(self.datasets.values()):
            here = np.flatnonzero(names == i)
            for at, record in zip(here, dataset.records.read(dataset.drawn[chosen[here]]), strict=True):
                examples[at] = cropped(record, self._mix.seq_len)
        left = iter(examples)
        return [list(itertools.islice(left, len(row))) for row in draws]


# Packing takes seconds; the plan, the record and the batches of a run need each phase, one after another.
_epochs_of = functools.lru_cache(maxsize=4)(_Epochs)


class _Batches:
    """The endless random-access sequence of one process's part of each batch, over all phases."""

    def __init__(self, mix: Mix, process: int, processes: int):
        self._mix, self._process, self._local = mix, process, mix.batch_size // processes
        self._phases = [_epochs_of(mix, number) for number in range(len(mix.phases))]
        self._fields = _fields(mix)
        self._together = math.ceil(READ_ROWS / self._local)  # batches
        self._lock = threading.Lock()  # one of Grain's threads reads, and the others use its result
        self._batches = functools.lru_cache(maxsize=2)(self._read)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, t: int) -> dict[str, np.ndarray]:
        starts = list(self._mix.phases)
        phase = bisect.bisect_right(starts, t) - 1
        group, number = divmod(t - starts[phase], self._together)
        with self._lock:
            rows = self._batches(phase, group)
        here = slice(number * self._local, (number + 1) * self._local)
        return {field: values[here] for field, values in rows.items()}

    def _read(self, phase: int, group: int) -> dict[str, np.ndarray]:
        """Returns the rows of `_together` batches of this process, one after another."""
        firsts = np.arange(group * self._together, (group + 1) * self._together) * self._mix.batch_size
        numbers = firsts[:, None] + self._process * self._local + np.arange(self._local)
        rows = fill(self._phases[phase].read(numbers.reshape(-1)), self._mix.seq_len, self._mix.loss_norm)
        return {field: rows[field] for field in self._fields}


def train_batches(mix: Mix, process: int = 0, processes: int = 1) -> grain.MapDataset:
    """Returns the endless random-access stream of this process's part of each batch.

    Element t holds rows `process * batch_size / processes` and following of global batch t: those fields of
    `packing.fill` [rows, seq_len] that the mix needs, the same in all batches of a run.
    """
    return grain.MapDataset.source(_Batches(mix, process, processes))


def first_examples(mix: Mix, count: int) -> Iterator[tuple[str, dict]]:
    """Yields the dataset and the example of the first draws of a run, before cropping."""
    epochs = _epochs_of(mix, 0)
    for i, place in epochs.drawn(0)[:count]:
        name, dataset = list(epochs.datasets.items())[i]
        yield name, dataset.records[dataset.drawn[place]]


def _fields(mix: Mix) -> list[str]:
    """Returns the fields of the rows; those of an objective where some dataset has records for it."""
    fields = list(PACKED if mix.packing else ALONE)
    counts = [_train_counts(mix, name) for name in mix.datasets]
    if any(count.letters and not count.ranked for count in counts):
        fields.append("letters")
    if any(count.ranked for count in counts):
        fields += ["branches", "ranked"] if mix.packing else ["branches", "ranked", "positions"]
    return fields


def cropped(record: dict, seq_len: int) -> Example:
    """Returns the last `seq_len + 1` tokens of a record."""
    letter = record["letter"].decode()
    kept = slice(-(seq_len + 1), None)
    gold = 1 + LETTERS.index(letter) if letter else 0
    return Example(record["tokens"][kept], record["mask"][kept], gold, record["branches"][kept])


def read_from(batches: grain.MapDataset, step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches from number `step` on, prepared ahead in threads; the order does not depend on them."""
    return iter(batches[step:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def validation_size(mix: Mix, name: str) -> int:
    """Returns the number of validation records of a dataset that the run reads.

    It is 0 for ranked questions, which no LM loss is defined on.
    """
    count = counts_of(mix.stores[name], name).get("validation")
    return _drawn_records(mix, name, "validation") if count and not count.ranked else 0


def validation_batches(mix: Mix, name: str, *, batch_size: int, records: int) -> list[dict[str, np.ndarray]]:
    """Returns at most `records` validation records of a dataset in batches of one shape.

    The last batch is padded with rows of weight 0. Each supervised token weighs 1 whatever the mix's norm, so that the
    losses of all runs compare. Without records (`validation_size`) there is no batch.
    """
    count = min(validation_size(mix, name), records)
    if not count:
        return []
    numbers = _drawn(mix, lengths_of(mix.stores[name], name, "validation"))[:count]
    read = open_examples(mix.stores[name], name, "validation").read(numbers)
    examples = [cropped(record, mix.seq_len) for record in read]
    together = [[i] for i in range(count)]
    if mix.packing:
        together = pack([len(example.ids) - 1 for example in examples], mix.seq_len)
    rows = [[examples[i] for i in row] for row in together]
    rows += [[]] * (-len(rows) % batch_size)
    filled = [fill(rows[i : i + batch_size], mix.seq_len, "token_mean") for i in range(0, len(rows), batch_size)]
    return [{field: batch[field] for field in (PACKED if mix.packing else ALONE)} for batch in filled]


# ---- What a run will see ----


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """How full the rows are: the share of their places that hold a token, and the records in a row."""

    share: float
    records_per_row: float


def packing_of(mix: Mix, number: int = 0) -> Packing:
    """Measures the rows of one of the mix's phases."""
    epochs = _epochs_of(mix, number)
    return Packing(epochs.places / (epochs.rows * mix.seq_len), epochs.draws / epochs.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One line of the mixture table."""

    # name, multiplier: the dataset, and its multiplier in each phase
    name: str
    multiplier: tuple[float, ...]
    # records, tokens, supervised: size of its training split
    records: int
    tokens: int
    supervised: int
    # record_share, supervised_share: its share of the run's records and supervised tokens
    record_share: float
    supervised_share: float
    epochs: float  # how often the run sees each record that it reads
    truncated: int  # records longer than a row
    letters: tuple[int, ...]  # number of records whose gold letter is A, B, C, D


def _drawn_supervised(mix: Mix, name: str) -> int:
    """Returns the number of supervised tokens that the run reads of a training split, its records cropped."""
    count = _train_counts(mix, name)
    if max(count.lengths) <= mix.seq_len + 1:
        return count.supervised
    rows = open_examples(mix.stores[name], name, "train")
    read = (row for row in rows if mix.truncation == "crop" or len(row["tokens"]) <= mix.seq_len + 1)
    return sum(int(row["mask"][-mix.seq_len :].sum()) for row in read)


def shares(mix: Mix, steps: int) -> list[Share]:
    """Returns the table of a run of `steps` updates; datasets that are never mixed in are left out."""
    counts = {name: _train_counts(mix, name) for name in mix.datasets}
    records = {name: _drawn_records(mix, name, "train") for name in counts}
    ends = [*list(mix.phases)[1:], steps]
    drawn = dict.fromkeys(counts, 0.0)
    for number, ((start, multipliers), end) in enumerate(zip(mix.phases.items(), ends, strict=True)):
        weights = dict.fromkeys(counts, 0.0)
        weights |= {name: copies * records[name] for name, copies in copies_of(multipliers).items()}
        draws = max(0, end - start) * mix.batch_size * packing_of(mix, number).records_per_row
        for name, weight in weights.items():
            drawn[name] += draws * weight / sum(weights.values())
    supervised = {name: drawn[name] * _drawn_supervised(mix, name) / records[name] for name in counts}
    return [
        Share(
            name=name,
            multiplier=tuple(multipliers.get(name, 0.0) for multipliers in mix.phases.values()),
            records=count.records,
            tokens=count.tokens,
            supervised=count.supervised,
            record_share=drawn[name] / sum(drawn.values()),
            supervised_share=supervised[name] / sum(supervised.values()),
            epochs=drawn[name] / records[name],
            truncated=sum(n for length, n in count.lengths.items() if length > mix.seq_len + 1),
            letters=tuple(count.letters.get(letter, 0) for letter in "ABCD") if count.letters else (),
        )
        for name, count in counts.items()
    ]
