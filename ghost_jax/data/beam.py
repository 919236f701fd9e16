"""Preparation on the workers of Apache Beam: parts, the documents that share a key, and the windows of a corpus.

The functions are those of one machine, and the stores get the same names and records. Every worker needs this package,
and the inputs and `$XDG_CACHE_HOME` under the same absolute paths.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import logging
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghost_jax.core.addresses import is_offline
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data import corpus, dedup
from ghost_jax.data.builders import pretrain
from ghost_jax.data.corpus import DOCUMENTS, FINGERPRINTS, Input, Judged, Say
from ghost_jax.data.storage import array_record
from ghost_jax.data.storage.artifact_cache import SplitCounts
from ghost_jax.text import tokenizer

# Beam's own DirectRunner first tries to download another one.
RUNNERS = {
    "direct": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
}
BLOCK = 8 << 20  # bytes of documents that a worker tokenises at a time
ROW_BITS = 40  # a document is known by the number of its part and, in these bits, its row there


@dataclasses.dataclass(frozen=True)
class Beam:
    """A runner of Apache Beam."""

    runner: str
    options: Any  # PipelineOptions

    def judged_parts(self, inputs: Sequence[Input], say: Say) -> Judged:
        """Makes the parts on the workers, and finds the duplicates in them; see `corpus.judged_parts`.

        Documents that share a key are found by the workers. They are few, and judged here, in their order.
        """
        import apache_beam as beam

        # The workers have another working directory.
        inputs = [each.absolute() for each in inputs]
        with tempfile.TemporaryDirectory(dir=cache_dir()) as folder, self._faults():
            with beam.Pipeline(options=self.options) as pipeline:
                keyed = (
                    pipeline
                    | beam.Create(list(enumerate(inputs)))
                    | beam.Reshuffle()
                    | beam.FlatMap(_keys_of, str(cache_dir().parent))
                )
                shared = keyed | beam.GroupByKey() | beam.FlatMap(_shared) | beam.Distinct()
                _ = shared | beam.io.WriteToText(f"{folder}/rows")
            found = [int(line) for path in Path(folder).glob("rows-*") for line in path.read_text().split()]
        parts = corpus.part_stores(inputs, say)  # those of the workers
        say(f"dropping duplicates among {len(found):,} documents that share a key")
        rows = [np.load(part / FINGERPRINTS, mmap_mode="r") for part in parts]
        numbers = np.array(sorted(found), np.int64)
        among = [mine[numbers[numbers >> ROW_BITS == part] % (1 << ROW_BITS)] for part, mine in enumerate(rows)]
        reason_of = dict(zip(numbers.tolist(), dedup.judge(np.concatenate(among)), strict=True))
        ids = ((part << ROW_BITS) + row for part, mine in enumerate(rows) for row in range(len(mine)))
        return parts, (reason_of.get(id, "") for id in ids)

    def write_windows(self, folder: Path, name: str, documents: Path, window: int) -> dict[str, SplitCounts]:
        """Writes the rows of `pretrain.dataset` of a corpus store, whose vocabulary is in `folder` already."""
        import apache_beam as beam

        blocks = list(_blocks(documents / DOCUMENTS))
        total = sum(count for _, _, count in blocks)

        @beam.ptransform_fn
        def rows(begin, split: str):
            arguments = str(documents / DOCUMENTS), str(folder / "tokenizer.json"), split
            tokens = begin | beam.Create(blocks) | beam.Reshuffle() | beam.Map(_tokens, *arguments)
            starts = tokens | beam.Map(_length) | beam.combiners.ToList() | beam.Map(_starts)
            pieces = tokens | beam.FlatMap(_pieces, beam.pvalue.AsSingleton(starts), window)
            return pieces | beam.GroupByKey() | beam.FlatMap(_row, split, window)

        splits = [split for split in pretrain.SPLITS if any(pretrain.is_in(split, i) for i in range(total))]
        with self._faults():
            return array_record.write_transforms(folder, name, {each: rows(each) for each in splits}, self.options)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Raises UserError for one that a worker raised, and for any other fault of a cluster."""
        try:
            yield
        except Exception as fault:
            text = f"{type(fault).__name__}: {fault}".strip()  # of a fault elsewhere, its traceback
            if found := re.search(r"UserError: (.*?) \[while running", text):
                raise UserError(found[1]) from fault
            if self.runner == "direct":
                raise
            raise UserError(
                f"--runner={self.runner} failed ({text.splitlines()[-1][:300]}). Read the log of the job, correct the "
                "--beam.KEY options, and repeat the command: stores that are complete are kept."
            ) from fault


def connect(runner: str, given: Sequence[tuple[str, str]]) -> Beam:
    """Returns one of `RUNNERS` with the pipeline options `given`, keys and texts.

    Raises UsageError for an option that Apache Beam does not know or whose value it refuses, UserError where the runner
    cannot be imported or GHOST_OFFLINE=1 forbids it.
    """
    if runner != "direct" and is_offline():
        raise UserError(f"--runner={runner} connects to a cluster, which GHOST_OFFLINE=1 forbids. Unset it.")
    # The direct runner logs the traceback of a fault that it raises as well; the others, where a job is shown.
    logging.getLogger().setLevel(logging.CRITICAL if runner == "direct" else logging.INFO)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner

        create_runner(RUNNERS[runner])
    except ImportError as fault:
        raise UserError(
            f"--runner={runner} needs Apache Beam, which cannot be imported ({fault}). Install it with "
            f"`{sys.executable} -m pip install -r requirements-beam.txt`."
        ) from None
    known = PipelineOptions([]).get_all_options()
    values: dict[str, list[str | bool]] = defaultdict(list)
    for key, text in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "They are those of its class PipelineOptions."
            raise UsageError(f"Apache Beam has no option {key} (--beam.{key}). {hint}")
        values[key].append({"true": True, "false": False}.get(text.lower(), text))
    flags = {key: found if len(found) > 1 else found[0] for key, found in values.items()}
    options = PipelineOptions.from_dictionary(flags | {"runner": RUNNERS[runner]})
    try:
        with contextlib.redirect_stderr(io.StringIO()) as refusal:
            options.get_all_options()  # parses them
    except SystemExit:
        raise UsageError(f"--beam.KEY: {refusal.getvalue().strip().rpartition('error: ')[2]}.") from None
    return Beam(runner, options)


# ---- On the workers ----


def _keys_of(numbered: tuple[int, Input], cache: str) -> Iterator[tuple[tuple[int, int], tuple]]:
    """Makes a part; yields its documents' keys, by the kind of key and their first byte, and the documents' numbers."""
    os.environ["XDG_CACHE_HOME"] = cache
    part, given = numbered
    rows = np.load(corpus.part_store(given) / FINGERPRINTS, mmap_mode="r")
    for kind, (numbers, keys) in enumerate(dedup.keys(rows)):
        first = keys >> np.uint64(56)
        for byte in np.unique(first):
            yield (kind, int(byte)), ((part << ROW_BITS) + numbers[first == byte], keys[first == byte])


def _shared(group: tuple[tuple[int, int], Iterable[tuple]]) -> list[int]:
    """Returns the documents that share a key."""
    numbers, keys = map(np.concatenate, zip(*group[1], strict=True))
    return numbers[dedup.repeated(keys)].tolist()


def _blocks(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yields the first document of each block, its place in bytes, and the number of documents."""
    first = start = place = 0
    with path.open("rb") as file:
        for count, line in enumerate(file, start=1):
            place += len(line)
            if place - start >= BLOCK:
                yield first, start, count - first
                first, start = count, place
    if place > start:
        yield first, start, count - first


def _tokens(block: tuple[int, int, int], path: str, vocabulary: str, split: str) -> tuple[int, bytes]:
    """Returns the first document of a block, and the ids of those in a split, int32."""
    first, place, count = block
    with open(path, "rb") as file:
        file.seek(place)
        lines = enumerate(itertools.islice(file, count), first)
        texts = (pretrain.text_of(corpus.record_of(line)) for index, line in lines if pretrain.is_in(split, index))
        ids = itertools.chain.from_iterable(pretrain.tokens_of(texts, tokenizer.load(Path(vocabulary))))
        return first, np.fromiter(ids, np.int32).tobytes()


def _length(tokens: tuple[int, bytes]) -> tuple[int, int]:
    return tokens[0], len(tokens[1]) // 4


def _starts(lengths: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Returns for each block the tokens before it."""
    blocks, counts = zip(*sorted(lengths), strict=True)
    return dict(zip(blocks, itertools.accumulate(counts[:-1], initial=0), strict=True))


def _pieces(tokens: tuple[int, bytes], starts: dict[int, int], window: int) -> Iterator[tuple[int, tuple[int, bytes]]]:
    block, ids = tokens
    for number, piece in pretrain.pieces(np.frombuffer(ids, np.int32), starts[block], window):
        yield number, (block, piece.tobytes())


def _row(pieces: tuple[int, Iterable[tuple[int, bytes]]], split: str, window: int) -> Iterator[tuple[str, dict]]:
    """Yields a row and its id. The last one, which fills no window, is dropped unless it is the first."""
    number, found = pieces
    tokens = np.frombuffer(b"".join(piece for _, piece in sorted(found)), np.int32)
    if number == 0 or len(tokens) > window:
        row = array_record.NO_BRANCHES | pretrain.row(split, number, tokens, "documents")
        yield row["id"], row
