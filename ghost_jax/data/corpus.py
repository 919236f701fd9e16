"""The documents of a config's sources: one part an input file, then all parts together without duplicates.

Parts are made on all cores, and several hosts can each make their share of them in a cache that they see together
(`python -m ghost_jax.data.prepare --shard=2/4`). Putting them together reads them in one order, so the corpus is the
same to the byte whoever made them.
"""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ghost_jax.data import duplicates, fetch, sources, store
from ghost_jax.data.builders import Documents
from ghost_jax.data.records import Fact, Record
from ghost_jax.errors import UsageError, UserError, did_you_mean
from ghost_jax.paths import cache_dir, data_folders
from ghost_jax.retrieve import Index, passages_of

Say = Callable[[str], None]
BOOK = ("attack", "capec", "cwe", "embedded")  # as documents call them: the pages that questions are asked from
PUBLISHED_BOOK = ("attack", "capec", "cwe")  # the sources of the open book
FINGERPRINTS = "fingerprints.npy"
WORTH_PROCESSES = 4 << 20  # bytes of input below which starting processes takes longer than reading


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One file of a source; no file for what comes with the package."""

    source: str
    path: Path | None

    def identity(self) -> dict:
        """Returns what tells its content apart: name, size and SHA-256."""
        if self.path is None:
            return {"source": self.source}
        size = self.path.stat().st_size
        return {"source": self.source, "file": self.path.name, "sha256": store.sha256_of(self.path), "bytes": size}


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a config's sources in their order, and sentences on what was nowhere to be found."""

    files: tuple[Input, ...]
    notes: tuple[str, ...]


def locate(names: Sequence[str], data_dir: str | None, say: Say) -> Inputs:
    """Returns the files of the sources `names`; what is on this machine nowhere is fetched, if it can be.

    Raises UsageError for a name that is no source.
    """
    folders = data_folders(data_dir)
    for name in names:
        if name not in sources.SOURCES:
            raise UsageError(f"data.sources names {name}.{did_you_mean(name, list(sources.SOURCES))}")
    missing = [name for name in names if sources.SOURCES[name].stems and not sources.locate(name, folders)]
    absent = fetch.bring(missing, cache_dir() / "data", say) if missing else {}
    files = []
    for name in names:
        if not sources.SOURCES[name].stems:
            files.append(Input(name, None))
        files += [Input(name, path) for path in sources.locate(name, folders)]
    if not absent:
        return Inputs(tuple(files), ())
    fate = "the embedded pack stands in for them" if "embedded" in names else "they are left out"
    why = "; ".join(dict.fromkeys(absent.values()))
    note = f"No files of {', '.join(absent)} in {', '.join(map(str, folders))}: {fate} ({why})."
    return Inputs(tuple(files), (note,))


# ---- Parts ----


def part_stores(inputs: Sequence[Input], say: Say) -> list[Path]:
    """Returns the store of each input's documents, made on all cores where there is enough to do."""
    sizes = [each.path.stat().st_size if each.path else 0 for each in inputs]
    processes = min(os.cpu_count() or 1, len(inputs))
    if processes < 2 or sum(sizes) < WORTH_PROCESSES:
        return [_part_store(say, each) for each in inputs]
    # Spawned, not forked: JAX has threads, and a lock held by one of them at a fork would never be let go.
    with multiprocessing.get_context("spawn").Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        by_size = sorted(range(len(inputs)), key=lambda i: -sizes[i])  # the longest work first
        made = pool.map(functools.partial(_part_store, say), [inputs[i] for i in by_size], chunksize=1)
    places = dict(zip(by_size, made, strict=True))
    return [places[i] for i in range(len(inputs))]


def _part_store(say: Say, given: Input) -> Path:
    source = sources.SOURCES[given.source]

    def write(folder: Path) -> dict:
        say(f"reading {given.source}: {given.path or 'in the package'}")
        licenses: dict[str, str] = {}
        documents: Counter[str] = Counter()

        def written() -> Iterator[Record]:
            with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
                for record in source.read(given.path) if given.path else source.read():
                    licenses.setdefault(record.source, record.license)
                    documents[record.source] += 1
                    file.write(json.dumps(dataclasses.asdict(record)) + "\n")
                    yield record

        np.save(folder / FINGERPRINTS, duplicates.fingerprints(written()))
        return {"licenses": licenses, "documents": documents}

    return store.build("part", ("ghost_jax.data.sources", "ghost_jax.data.duplicates"), given.identity(), write)


# ---- Together ----


def corpus_store(inputs: Inputs, say: Say) -> Path:
    """Returns the store of all inputs' documents, each duplicate of an earlier one left out and counted.

    Raises UserError for a damaged input, and where there is no document at all.
    """
    names = list(dict.fromkeys(each.source for each in inputs.files))
    made_from = {"inputs": [each.identity() for each in inputs.files if each.path], "sources": names}

    def write(folder: Path) -> dict:
        parts = part_stores(inputs.files, say)
        documents: Counter[str] = Counter()
        dropped: Counter[tuple[str, str]] = Counter()
        licenses: dict[str, str] = {}
        say("dropping duplicates")
        reasons = duplicates.judge(np.concatenate([np.load(part / FINGERPRINTS) for part in parts]))
        with (folder / "documents.jsonl").open("wb") as file:
            for line, reason in zip(itertools.chain.from_iterable(map(_lines, parts)), reasons, strict=True):
                if reason:
                    dropped[json.loads(line)["source"], reason] += 1
                else:
                    file.write(line)
        for part in parts:
            licenses |= store.manifest(part)["licenses"]
            documents.update(store.manifest(part)["documents"])
        by_source = {source: {r: dropped[source, r] for r in duplicates.REASONS} for source, _ in dropped}
        for source, counts in by_source.items():
            documents[source] -= sum(counts.values())
        if not documents:
            raise UserError(f"The sources {', '.join(names)} hold no document. Add embedded to --config.data.sources.")
        return {"documents": documents, "duplicates_dropped": by_source, "licenses": licenses}

    return store.build("corpus", (__name__,), made_from, write)


def _lines(part: Path) -> Iterator[bytes]:
    with (part / "documents.jsonl").open("rb") as file:
        yield from file


def documents_of(corpus: Path) -> Documents:
    """Returns a function that streams a corpus store's documents, from the start each time it is called."""

    def read() -> Iterator[Record]:
        with (corpus / "documents.jsonl").open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                yield Record(**{**fields, "facts": tuple(Fact(**fact) for fact in fields["facts"])})

    return read


def index_store(corpus: Path, pages_of: Iterable[str], say: Say) -> Path:
    """Returns the store of the lexical index over a corpus's pages of some sources, as documents call them."""
    indexed = sorted(set(pages_of))

    def write(folder: Path) -> dict:
        say(f"indexing the passages of {', '.join(indexed)}")
        pages = (record for record in documents_of(corpus)() if record.source in indexed)
        index = Index.build(passage for page in pages for passage in passages_of(page))
        index.save(folder)
        return {"passages": len(index), "inputs": store.manifest(corpus)["made_from"]["inputs"]}

    return store.build("index", ("ghost_jax.retrieve",), {"corpus": corpus.name, "sources": indexed}, write)


def book_corpus(data_dir: str | None, say: Say, names: Sequence[str] = PUBLISHED_BOOK) -> Path:
    """Returns the corpus store of the open book: the reference pages that questions are answered from.

    Raises:
      UserError: a file of a source is neither on this machine nor can it be fetched. An open book with a part missing
        would be another book, and its figure no figure of this one.
    """
    inputs = locate(names, data_dir, say)
    here = [each.path.name for each in inputs.files if each.path]
    wanted = {stem: name for name in names for stem in sources.SOURCES[name].stems}
    absent = {stem: name for stem, name in wanted.items() if not any(file.startswith(stem) for file in here)}
    if absent:
        lacking = ",".join(dict.fromkeys(absent.values()))
        raise UserError(
            f"The open book lacks {', '.join(absent)}. {' '.join(inputs.notes)} Set GHOST_DATA or --data_dir to the "
            f"folder that holds raw/, or run python -m ghost_jax.data.fetch --sources={lacking}."
        )
    return corpus_store(inputs, say)
