"""Prompts that share their beginnings, read in few forward passes.

The orders of one question differ only from the first option on, and all questions begin with the same instruction. So
a row of a batch holds, once, what every prompt begins with, and behind it as many questions as fit, each a tree: what
its prompts share, and a branch for each prompt. A token sees what stands before it in its own prompt and nothing else;
its position is the one it has there. On CTIBench in four orders this leaves 40% of the tokens that a loop over the
prompts reads. One call of `read` takes two shapes at most, for short prompts and for long ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghost_jax.core.console import Progress
from ghost_jax.data.packing import pack
from ghost_jax.parallel.distributed import is_main

# `(batch, at [B, R], targets [B, R, K]) -> (log-probabilities, whether most probable), each [B, R, K]`: what
# `ghost_jax.training.step.make_predict` returns, with the parameters bound.
Predict = Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Places of a row; that is taken by which all prompts come into the fewest. Longer ones would spend more on attention
# than they save on what is shared.
ROWS = (256, 384, 512)
READS = 4  # of a row at least; more are padded to a power of two, since each number of reads is compiled


@dataclass(frozen=True, slots=True)
class Branch:
    """One prompt, from where it leaves its tree's trunk.

    Attributes:
      ids: [n] int32, at least one.
      places: [R] int, the places in `ids` after which the next token is asked for.
      targets: [R, K] int32, the tokens whose log-probability is asked for there.
    """

    ids: np.ndarray
    places: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Tree:
    """Prompts that begin alike: the ids [t] int32 that they share, and a branch for each."""

    trunk: np.ndarray
    branches: tuple[Branch, ...]

    @property
    def depth(self) -> int:
        """The length of the longest prompt."""
        return len(self.trunk) + max(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says at the reads of a branch.

    Attributes:
      log_probs: [R, K] float32, of the targets.
      most_probable: [R, K] bool, whether a target is the most probable token.
    """

    log_probs: np.ndarray
    most_probable: np.ndarray


def cropped(tree: Tree, context: int) -> Tree:
    """Returns the tree with prompts of at most `context` tokens: what is too much is taken from their beginnings.

    A read at a place that is lost is lost too.
    """
    if tree.depth <= context:
        return tree
    branches = tuple(
        Branch(branch.ids[lost:], branch.places[kept] - lost, branch.targets[kept])
        for branch in tree.branches
        for lost in [max(0, len(branch.ids) - context)]
        for kept in [branch.places >= lost]
    )
    room = context - max(len(branch.ids) for branch in branches)
    return Tree(tree.trunk[len(tree.trunk) - room :], branches)


def shared_beginning(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the ids [n] with which all of the prompts, at least one, begin."""
    length = min(map(len, prompts))
    same = np.all([prompt[:length] == prompts[0][:length] for prompt in prompts], axis=0)
    return prompts[0][: length if same.all() else same.argmin()]


def read(predict: Predict, trees: Sequence[Tree], *, context: int, batch_size: int, doing: str) -> list[list[Reading]]:
    """Returns the readings of each tree's branches. `doing` is what the progress line calls it.

    Args:
      trees: with prompts of at most `context` tokens, and one K in all their targets.
      context: the longest row that the model takes.
      batch_size: rows a forward pass, at most.
    """
    layouts = [_laid_out(trees, length, context) for length in sorted({min(length, context) for length in ROWS})]
    fewest = min(layouts, key=lambda layout: sum(sheet.row_len * len(sheet.rows) for sheet in layout))
    readings: list[list] = [[None] * len(tree.branches) for tree in trees]
    with Progress(doing, sum(len(tree.branches) for tree in trees), unit="prompts", shown=is_main()) as progress:
        for sheet in fewest:
            for piece, found in _read(sheet, predict, batch_size):
                readings[piece.tree][piece.first : piece.first + len(found)] = found
                progress.advance(len(found))
    return readings


@dataclass(frozen=True, slots=True)
class _Piece:
    """What stands in one row of a tree: its trunk behind the header, and its branches from number `first` on."""

    tree: int
    first: int
    trunk: np.ndarray
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class _Sheet:
    """Rows of one length and what they hold: first the header, which is the same in all."""

    row_len: int
    header: np.ndarray
    rows: list[list[_Piece]]


def _laid_out(trees: Sequence[Tree], row_len: int, context: int) -> list[_Sheet]:
    """Returns the trees in rows of `row_len` places, and those with a longer prompt in rows of the whole context."""
    sheets = []
    for length, longer in ((row_len, False), (context, True)):
        held = {number: tree for number, tree in enumerate(trees) if (tree.depth > row_len) == longer}
        if held:
            header = shared_beginning([tree.trunk for tree in held.values()])
            pieces = [piece for number, tree in held.items() for piece in _pieces(number, tree, len(header), length)]
            lengths = [len(piece.trunk) + sum(len(branch.ids) for branch in piece.branches) for piece in pieces]
            rows = [[pieces[i] for i in row] for row in pack(lengths, length - len(header))]
            sheets.append(_Sheet(length, header, rows))
    return sheets


def _read(sheet: _Sheet, predict: Predict, batch_size: int) -> Iterator[tuple[_Piece, list[Reading]]]:
    """Yields the readings of all that stands on a sheet, a piece at a time."""
    header, rows = sheet.header, sheet.rows
    most = max(sum(len(branch.places) for piece in row for branch in piece.branches) for row in rows)
    reads = max(READS, 1 << (most - 1).bit_length())
    # Batches of one shape, as even as they can be: the last is filled up with its first row, which is read for nothing.
    batch_size = -(-len(rows) // -(-len(rows) // batch_size))
    for start in range(0, len(rows), batch_size):
        numbers = [*range(start, min(start + batch_size, len(rows)))]
        numbers += numbers[:1] * (batch_size - len(numbers))
        filled = [_filled(header, rows[number], sheet.row_len, reads) for number in numbers]
        batch = {key: np.stack([row[key] for row in filled]) for key in filled[0]}
        at, targets = batch.pop("at"), batch.pop("targets")
        log_probs, most_probable = map(np.asarray, predict(batch, at, targets))
        for row, of_row, top_of_row in zip(rows[start : start + batch_size], log_probs, most_probable, strict=False):
            end = 0
            for piece in row:
                found = []
                for branch in piece.branches:
                    begin, end = end, end + len(branch.places)
                    found.append(Reading(of_row[begin:end], top_of_row[begin:end]))
                yield piece, found


def _pieces(number: int, tree: Tree, header: int, row_len: int) -> Iterator[_Piece]:
    """Yields a tree in as few pieces as fit rows that begin with `header` tokens of its trunk."""
    trunk = tree.trunk[header:]
    room = row_len - header - len(trunk) if len(trunk) else 0  # with no trunk of its own, each branch stands alone
    first = used = 0
    for number_of_branch, branch in enumerate(tree.branches):
        if number_of_branch > first and used + len(branch.ids) > room:
            yield _Piece(number, first, trunk, tree.branches[first:number_of_branch])
            first, used = number_of_branch, 0
        used += len(branch.ids)
    yield _Piece(number, first, trunk, tree.branches[first:])


def _filled(header: np.ndarray, row: Sequence[_Piece], row_len: int, reads: int) -> dict[str, np.ndarray]:
    """Returns a row's part of the batch, and its `at` [R] and `targets` [R, K].

    The header is segment 0, which every place behind it sees; what is left of the row is segment -1.
    """
    filled = {key: np.zeros(row_len, np.int32) for key in ("tokens", "positions", "segments", "branches")}
    filled["segments"][len(header) :] = -1
    filled["at"] = np.zeros(reads, np.int32)
    filled["targets"] = np.zeros((reads, row[0].branches[0].targets.shape[1]), np.int32)
    end = done = 0

    def put(ids: np.ndarray, position: int, segment: int, branch: int) -> int:
        nonlocal end
        start, end = end, end + len(ids)
        filled["tokens"][start:end] = ids
        filled["positions"][start:end] = position + np.arange(len(ids))
        filled["segments"][start:end], filled["branches"][start:end] = segment, branch
        return start

    put(header, 0, 0, 0)
    for segment, piece in enumerate(row, 1):
        put(piece.trunk, len(header), segment, 0)
        for number, branch in enumerate(piece.branches, 1):
            start = put(branch.ids, len(header) + len(piece.trunk), segment, number)
            read = slice(done, done + len(branch.places))
            filled["at"][read], filled["targets"][read] = start + branch.places, branch.targets
            done = read.stop
    return filled
