"""Packing: several conversations in one row, each with its own positions and segment, so that none attends to another.

Most conversations are far shorter than a row; padding would be three quarters of a step's work.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A part of a row: a conversation, or a ranked question with all its options as branches.

    Each branch attends to the prompt and itself, and its positions continue from the prompt's end, so that one forward
    pass computes what a pass for each option would. Each repeats the prompt's last token, which predicts its first one.
    """

    ids: np.ndarray  # [n + 1] int32
    mask: np.ndarray  # [n + 1] bool, the supervised tokens
    gold: int = 0  # 1 + the index of the gold letter; 0 where there is none
    # [n + 1] uint8, 0 for the prompt and 1 + its index for an option, ascending; empty for a conversation
    branches: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint8))


def pack(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """Returns rows of record numbers whose lengths sum to at most `row_len`; every record is in exactly one row.

    Best fit, longest first: each record goes where it leaves the fewest free places. None is empty or longer than a
    row.
    """
    rows: list[list[int]] = []
    by_free: list[list[int]] = [[] for _ in range(row_len + 1)]  # free places -> rows that have so many
    sizes = 0  # bit n is set where some row has n free places: the tightest fit is then one shift away
    for record in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[record]
        fitting = sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = by_free[free].pop()
            if not by_free[free]:
                sizes ^= 1 << free
        else:
            free, row = row_len, len(rows)
            rows.append([])
        rows[row].append(record)
        by_free[free - length].append(row)
        sizes |= 1 << (free - length)
    return rows


def fill(rows: Sequence[Sequence[Example]], row_len: int, loss_norm: str) -> dict[str, np.ndarray]:
    """Returns a batch of packed rows: the fields below, each [rows, row_len], `weights` float32 and the others int32.

    `tokens`, `targets`, `positions`
    `segments`: the number of the place's example, from 1; padding is segment 0 and has weight 0.
    `weights`: of the language-model loss, see `loss_norm`; 0 in a ranked question.
    `letters`: 1 + the index of the gold letter at the place that predicts it, the first supervised one; else 0.
    `branches`: of a ranked question, see `Example`; else 0.
    `ranked`: 1 where a token of a wrong option is predicted, 2 where one of the gold option; else 0.

    Args:
      rows: the examples of each row. One of n + 1 tokens fills n places: its last token is only a target. A question
        whose options were cropped is not ranked.
      loss_norm: "token_mean": each supervised token weighs 1. "record_mean": the weights of a record's supervised
        tokens in the row sum to 1.
    """
    keys = ("tokens", "targets", "positions", "segments", "letters", "branches", "ranked")
    batch = {key: np.zeros((len(rows), row_len), np.int32) for key in keys}
    batch["weights"] = np.zeros((len(rows), row_len), np.float32)
    examples = [example for row in rows for example in row]
    if not examples:
        return batch
    # Index arithmetic over the places of all examples at once: a call of NumPy an example costs more than its tokens.
    lengths = np.array([len(example.ids) - 1 for example in examples])
    ends = np.cumsum(lengths)
    first = ends - lengths  # of each example, among all places
    per_row = np.array([len(row) for row in rows])
    row_of = np.repeat(np.arange(len(rows)), per_row)
    first_of_row = np.cumsum(per_row) - per_row  # the number of its first example
    in_row = first - first[np.minimum(first_of_row, len(examples) - 1)][row_of]  # where an example starts in its row
    example_of = np.repeat(np.arange(len(examples)), lengths)
    within = np.arange(ends[-1]) - first[example_of]  # a place's number in its example
    source = np.arange(ends[-1]) + example_of  # each example has one token more than places
    place = (row_of * row_len + in_row)[example_of] + within
    flat = {key: values.reshape(-1) for key, values in batch.items()}

    ids = np.concatenate([example.ids for example in examples])
    learnt = np.concatenate([example.mask for example in examples])[source + 1]
    flat["tokens"][place], flat["targets"][place] = ids[source], ids[source + 1]
    flat["segments"][place] = (1 + np.arange(len(examples)) - first_of_row[row_of])[example_of]
    flat["positions"][place] = within
    spoken = np.array([not len(example.branches) for example in examples])
    counted = np.bincount(example_of, learnt, len(examples)) if loss_norm == "record_mean" else np.ones(len(examples))
    flat["weights"][place] = learnt * (spoken / np.maximum(counted, 1))[example_of]
    for number in np.flatnonzero(~spoken):
        example, here = examples[number], place[first[number] : ends[number]]
        branches = example.branches[:-1]
        flat["branches"][here] = branches
        first_place = np.searchsorted(branches, branches)  # of each one's branch, which continues from the prompt's end
        prompt = np.where(branches > 0, np.count_nonzero(branches == 0), 0)
        flat["positions"][here] = np.arange(len(branches)) - first_place + prompt
        if example.branches[0] == 0:
            flat["ranked"][here] = np.where(example.mask[1:], 1 + (branches == example.gold), 0)
    for number in np.flatnonzero([bool(example.gold) and not example.mask[0] for example in examples] & spoken):
        # The answer of a cropped example may lack its letter: then its first token is supervised.
        supervised = np.flatnonzero(learnt[first[number] : ends[number]])
        if len(supervised):
            flat["letters"][place[first[number] + supervised[0]]] = examples[number].gold
    return batch
