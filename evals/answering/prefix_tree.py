"""Prompts that share their beginnings, read in few forward passes.

A row of a batch begins with the prefix of all prompts, once, and then holds as many questions as fit. Each question is
a tree: the trunk that its prompts share, and a branch for each prompt. A token attends to its own prompt alone and has
its position there. On CTIBench in four orders this leaves 40% of the tokens that a loop over the prompts computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghost_jax.core.console import Progress
from ghost_jax.data.packing import pack
from ghost_jax.inference.generate import power_of_two
from ghost_jax.parallel.distributed import is_main

# `(batch, at [B, R], targets [B, R, K]) -> log-probabilities [B, R, K]`, see `ghost_jax.training.step.make_predict`
Predict = Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]

# Tokens of a row; the length with the fewest tokens in all is used. Longer rows would spend more on attention than they
# save on what is shared.
ROWS = (256, 384, 512)
READS = 4  # of a row at least; more are padded to a power of two, since each number of reads is compiled


@dataclass(frozen=True, slots=True)
class Branch:
    """One prompt behind its tree's trunk."""

    ids: np.ndarray  # [n] int32, at least one
    places: np.ndarray  # [R] int, the indices in `ids` after which the next token is scored
    targets: np.ndarray  # [R, K] int32, the tokens whose log-probability is wanted there


def scored_text(ids: np.ndarray) -> Branch:
    """Returns the branch in which every token of `ids` [n] but the first is scored after those before it."""
    return Branch(ids[:-1], np.arange(len(ids) - 1), ids[1:, None])


@dataclass(frozen=True, slots=True)
class Tree:
    """Prompts that begin alike: the ids [t] int32 that they share, and a branch for each."""

    trunk: np.ndarray
    branches: tuple[Branch, ...]

    @property
    def depth(self) -> int:
        """The length of the longest prompt."""
        return len(self.trunk) + max(len(branch.ids) for branch in self.branches)


def cropped(tree: Tree, context: int) -> Tree:
    """Returns the tree with prompts of at most `context` tokens, cropped at their beginnings, without places there."""
    if tree.depth <= context:
        return tree
    branches = []
    for branch in tree.branches:
        lost = max(0, len(branch.ids) - context)
        kept = branch.places >= lost
        branches.append(Branch(branch.ids[lost:], branch.places[kept] - lost, branch.targets[kept]))
    room = context - max(len(branch.ids) for branch in branches)
    return Tree(tree.trunk[len(tree.trunk) - room :], tuple(branches))


def shared_beginning(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the ids [n] with which all of the prompts, at least one, begin."""
    length = min(map(len, prompts))
    same = np.all([prompt[:length] == prompts[0][:length] for prompt in prompts], axis=0)
    return prompts[0][: length if same.all() else same.argmin()]


def read(
    predict: Predict, trees: Sequence[Tree], *, context: int, batch_size: int, doing: str
) -> list[list[np.ndarray]]:
    """Returns for each branch of each tree the log-probabilities [R, K] float32 of its targets at its places.

    Args:
      trees: with one K in all their targets; prompts longer than the context are cropped.
      context: the longest row that the model accepts.
      batch_size: rows a forward pass, at most.
      doing: the label of the progress line.
    """
    trees = [cropped(tree, context) for tree in trees]
    layouts = [_packed(trees, length, context) for length in sorted({min(length, context) for length in ROWS})]
    fewest = min(layouts, key=lambda layout: sum(packed.row_len * len(packed.rows) for packed in layout))
    log_probs: list[list] = [[None] * len(tree.branches) for tree in trees]
    with Progress(doing, sum(len(tree.branches) for tree in trees), unit="prompts", shown=is_main()) as progress:
        for packed in fewest:
            for piece, found in _read(packed, predict, batch_size):
                log_probs[piece.tree][piece.first : piece.first + len(found)] = found
                progress.advance(len(found))
    return log_probs


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a tree that is in one row: its trunk behind the header, and branches from number `first` on."""

    tree: int
    first: int
    trunk: np.ndarray
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Packed rows of one length; all begin with the header."""

    row_len: int
    header: np.ndarray
    rows: list[list[_Piece]]


def _packed(trees: Sequence[Tree], row_len: int, context: int) -> list[_Rows]:
    """Returns the trees in rows of `row_len` tokens, and those with a longer prompt in rows that hold the longest."""
    layout, longest = [], max((tree.depth for tree in trees), default=0)
    for length, longer in ((row_len, False), (min(context, power_of_two(longest)), True)):
        held = {number: tree for number, tree in enumerate(trees) if (tree.depth > row_len) == longer}
        if held:
            header = shared_beginning([tree.trunk for tree in held.values()])
            pieces = [piece for number, tree in held.items() for piece in _pieces(number, tree, len(header), length)]
            lengths = [len(piece.trunk) + sum(len(branch.ids) for branch in piece.branches) for piece in pieces]
            rows = [[pieces[i] for i in row] for row in pack(lengths, length - len(header))]
            layout.append(_Rows(length, header, rows))
    return layout


def _read(packed: _Rows, predict: Predict, batch_size: int) -> Iterator[tuple[_Piece, list[np.ndarray]]]:
    """Yields the pieces of packed rows, with the log-probabilities of each branch."""
    rows = packed.rows
    most = max(sum(len(branch.places) for piece in row for branch in piece.branches) for row in rows)
    reads = max(READS, 1 << (most - 1).bit_length())
    # Batches of one shape, as even as they can be; the last is padded with its first row.
    batch_size = -(-len(rows) // -(-len(rows) // batch_size))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        padded = some + some[:1] * (batch_size - len(some))
        filled = [_filled(packed.header, row, packed.row_len, reads) for row in padded]
        batch = {key: np.stack([row[key] for row in filled]) for key in filled[0]}
        at, targets = batch.pop("at"), batch.pop("targets")
        log_probs = np.asarray(predict(batch, at, targets))
        for row, of_row in zip(some, log_probs, strict=False):
            ends = np.cumsum([len(branch.places) for piece in row for branch in piece.branches])
            of_branches = iter(np.split(of_row, ends))
            for piece in row:
                yield piece, [next(of_branches) for _ in piece.branches]


def _pieces(number: int, tree: Tree, header: int, row_len: int) -> Iterator[_Piece]:
    """Yields a tree in as few pieces as fit in rows that begin with `header` tokens of its trunk."""
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

    The header is segment 0, which every later token attends to; the unused end of the row is segment -1.
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
