"""The mixture table that is printed before update 0, with remarks on what a reader of it should know."""

from collections.abc import Sequence

from rich.table import Column, Table

from ghost_jax.data.mixture import MOST_PASSES, Mix, Packing, Share, copies_of, validation_size

TASK_SHARE = 0.2  # below it, by the SmolLM2 reference of the study, small talk outweighs the task
NO_TASK = "small_talk"
INEXACT = 0.03  # of a multiplier; the passes of an epoch are good to 1%, of this dataset and of another
COLUMNS = ("mult", "records", "tokens", "supervised", "share", "superv. share", "epochs", "truncated", "A/B/C/D")


def table(lines: Sequence[Share]) -> Table:
    """Returns the mixture table for the screen."""
    numbers = (Column(name, justify="right") for name in COLUMNS)
    drawn = Table("source", *numbers, title="Mixture", title_justify="left")
    for line in lines:
        drawn.add_row(
            line.name,
            "x" + ", ".join(f"{multiplier:g}" for multiplier in line.multiplier),
            f"{line.records:,}",
            f"{line.tokens:,}",
            f"{line.supervised:,}",
            f"{line.record_share:.1%}",
            f"{line.supervised_share:.1%}",
            f"{line.epochs:.2f}",
            f"{line.truncated:,}",
            "/".join(map(str, line.letters)),
        )
    return drawn


def remarks(mix: Mix, lines: Sequence[Share], rows: Packing) -> list[str]:
    """Returns the lines below the table: task share, rows, over-long records, and warnings."""
    found = []
    tasks = [line for line in lines if line.name != NO_TASK]
    if len(tasks) < len(lines):
        by_record, by_token = sum(line.record_share for line in tasks), sum(line.supervised_share for line in tasks)
        low = min(by_record, by_token) < TASK_SHARE
        found.append(
            f"{'WARNING: ' if low else ''}task share (everything but {NO_TASK}): {by_record:.1%} of the records, "
            f"{by_token:.1%} of the supervised tokens{f', below {TASK_SHARE:.0%}' if low else ''}."
        )
    if mix.packing:
        found.append(
            f"packing: {rows.share:.1%} of a row's {mix.seq_len} places hold a token; {rows.records_per_row:.2f} "
            f"records a row, about {rows.records_per_row * mix.batch_size:.0f} an update."
        )
    for multipliers in (phase.multipliers for phase in mix.phases):
        copies = copies_of(multipliers)
        most = max(copies, key=multipliers.get)
        for name, count in copies.items():
            mixed = multipliers[most] * count / copies[most]
            if abs(mixed / multipliers[name] - 1) > INEXACT:
                limit = f"an epoch has at most {MOST_PASSES} passes of x1"
                found.append(f"WARNING: {name} is mixed in x{mixed:g} and not x{multipliers[name]:g}: {limit}.")
    if not any(validation_size(mix, name) for name in mix.datasets):
        found.append("WARNING: no dataset of the mixture has a validation record: there is no validation loss.")
    if truncated := sum(line.truncated for line in lines):
        fate = "lose their beginning" if mix.truncation == "crop" else "are left out"
        found.append(f"{truncated:,} records are longer than a row and {fate} (data.truncation={mix.truncation}).")
    return found
