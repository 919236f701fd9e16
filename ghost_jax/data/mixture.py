"""The weighted mixture: batch t is a pure function of the config, the seed and t, whatever reads it.

Every source is shuffled anew each pass and repeated for ever; sources are interleaved in proportion to records x
multiplier, so a multiplier of 5 is the field's "each record five times an epoch" without a long epoch to wait for.
Grain's `MapDataset` gives random access to the result: to resume at update t, start reading at t.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from rich.table import Table

from ghost_jax.data import store
from ghost_jax.errors import UserError

LETTERS = "ABCD"
PASSES = 1 << 30  # over a source: more than any run reads, where an endless stream's length would overflow in a mix


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One line of the mixture table.

    Attributes:
      name, multiplier: the dataset, and how often each of its records comes in one epoch of the mix.
      records, tokens, supervised: size of its training split, as prepared.
      record_share, supervised_share: its part of what the run sees, by record and by supervised token.
      epochs: how often the run sees each record.
      cropped: records longer than a row, which lose their beginning.
      letters: gold letters A to D of its records.
    """

    name: str
    multiplier: float
    records: int
    tokens: int
    supervised: int
    record_share: float
    supervised_share: float
    epochs: float
    cropped: int
    letters: tuple[int, ...]


def shares(examples: Path, multipliers: dict[str, float], draws: int, seq_len: int) -> list[Share]:
    """Returns the table of a run that draws `draws` records; datasets of multiplier 0 are left out."""
    datasets = store.manifest(examples)["datasets"]
    mixed = [name for name, multiplier in multipliers.items() if multiplier > 0]
    empty = [name for name in mixed if "train" not in datasets[name]]
    if empty:
        raise UserError(
            f"The mixture asks for {', '.join(empty)}, but the sources of the config hold no record of it. Add sources "
            f"to --config.data.sources, or set --config.data.mixture.{empty[0]}=0."
        )
    counts = {name: datasets[name]["train"] for name in mixed}
    weights = {name: multipliers[name] * count["records"] for name, count in counts.items()}
    total = sum(weights.values())
    supervised = {name: multipliers[name] * count["supervised"] for name, count in counts.items()}
    return [
        Share(
            name=name,
            multiplier=multipliers[name],
            records=count["records"],
            tokens=count["tokens"],
            supervised=count["supervised"],
            record_share=weights[name] / total,
            supervised_share=supervised[name] / sum(supervised.values()),
            epochs=draws * weights[name] / total / count["records"],
            cropped=sum(n for length, n in count["lengths"].items() if int(length) > seq_len + 1),
            letters=tuple(count["letters"].get(letter, 0) for letter in LETTERS),
        )
        for name, count in counts.items()
    ]


def table(lines: list[Share]) -> Table:
    """Returns the mixture table for the screen."""
    drawn = Table(title="Mixture", title_justify="left")
    drawn.add_column("source")
    for column in ("mult", "records", "tokens", "supervised", "share", "superv. share", "epochs", "cropped", "A/B/C/D"):
        drawn.add_column(column, justify="right")
    for line in lines:
        drawn.add_row(
            line.name,
            f"x{line.multiplier:g}",
            f"{line.records:,}",
            f"{line.tokens:,}",
            f"{line.supervised:,}",
            f"{line.record_share:.1%}",
            f"{line.supervised_share:.1%}",
            f"{line.epochs:.2f}",
            f"{line.cropped:,}",
            "/".join(map(str, line.letters)) if any(line.letters) else "",
        )
    return drawn


def row(example: dict, seq_len: int) -> dict[str, np.ndarray]:
    """Returns one example as `tokens`, `targets`, `weights`, each [seq_len]; a longer one loses its beginning.

    Padding stands on the right, where a causal model never sees it, and weighs nothing.
    """
    tokens, mask = example["tokens"][-(seq_len + 1) :], example["mask"][-(seq_len + 1) :]
    length = len(tokens) - 1
    out = {
        "tokens": np.zeros(seq_len, np.int32),
        "targets": np.zeros(seq_len, np.int32),
        "weights": np.zeros(seq_len, np.float32),
    }
    out["tokens"][:length], out["targets"][:length], out["weights"][:length] = tokens[:-1], tokens[1:], mask[1:]
    return out


def train_batches(
    examples: Path,
    multipliers: dict[str, float],
    *,
    seed: int,
    batch_size: int,
    seq_len: int,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """Returns the endless random-access stream of this process's part of each batch.

    Element t holds rows `process * batch_size / processes` and following of global batch t.
    """
    datasets, weights = [], []
    for name, multiplier in sorted(multipliers.items()):
        if multiplier > 0:
            source = store.open_examples(examples, name, "train")
            # The seed belongs to the name, so that dropping one source moves no other's order.
            datasets.append(grain.MapDataset.source(source).seed(_seed_of(seed, name)).shuffle().repeat(PASSES))
            weights.append(multiplier * len(source))
    mixed = grain.MapDataset.mix(datasets, weights=weights) if len(datasets) > 1 else datasets[0]
    local = batch_size // processes
    return mixed.map(lambda example: row(example, seq_len)).batch(local)[process::processes]


def _seed_of(seed: int, name: str) -> int:
    return int(store.fingerprint([seed, name])[:8], 16)


def read_from(batches: grain.MapDataset, step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches from number `step` on, prepared ahead in threads; the order does not depend on them."""
    return iter(batches[step:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def validation_batches(
    examples: Path, name: str, *, batch_size: int, seq_len: int, records: int
) -> list[dict[str, np.ndarray]]:
    """Returns the validation split of one dataset, at most `records` of it, in batches of one shape.

    The last batch is filled up with rows that weigh nothing. Empty where the dataset has no such split, or none of
    its records is asked for.
    """
    if "validation" not in store.manifest(examples)["datasets"][name]:
        return []
    source = store.open_examples(examples, name, "validation")
    rows = [row(source[i], seq_len) for i in range(min(len(source), records))]
    if not rows:
        return []
    rows += [{key: np.zeros_like(value) for key, value in rows[0].items()}] * (-len(rows) % batch_size)
    return [
        {key: np.stack([r[key] for r in rows[i : i + batch_size]]) for key in rows[0]}
        for i in range(0, len(rows), batch_size)
    ]


def fingerprint(examples: Path, multipliers: dict[str, float], seed: int, batch_size: int, seq_len: int) -> str:
    """Returns the hash of all that decides what batch t is: the rows mixed in, how, and in which order."""
    datasets = store.manifest(examples)["datasets"]
    mixed = [(name, m, datasets[name]["train"]["sha256"]) for name, m in sorted(multipliers.items()) if m > 0]
    return store.fingerprint([mixed, seed, batch_size, seq_len])
