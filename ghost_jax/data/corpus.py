"""The documents of a config's sources: one part an input file, then all parts together without duplicates.

Parts are made on all cores, and several hosts can each make their share of them in a cache that they see together
(`python -m ghost_jax.data.prepare --shard=2/4`). Putting them together reads them in one order, so the corpus is the
same to the byte whoever made them.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir, data_folders
from ghost_jax.data import dedup, fetch, sources
from ghost_jax.data.builders import Documents
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.retrieval import bm25
from ghost_jax.data.retrieval.bm25 import Index, passages_of
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage import artifact_cache, schema, text_cleaning
from ghost_jax.data.storage.files import listed, stem
from ghost_jax.data.storage.schema import Fact, Record

Say = Callable[[str], None]
BOOK = ("attack", "capec", "cwe", "embedded")  # as documents call them: the pages that questions are asked from
PUBLISHED_BOOK = ("attack", "capec", "cwe")  # the sources of the open book
FINGERPRINTS = "fingerprints.npy"
_OF_ALL = [text_cleaning, schema, dedup]  # what decides the documents of every source
WORTH_PROCESSES = 4 << 20  # bytes of input below which starting processes takes longer than reading


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One file of a source; no file for what comes with the package."""

    source: str
    path: Path | None

    def identity(self) -> dict:
        """Returns what tells its content apart: name, size and SHA-256."""
        if self.path is None:
            return {"source": self.source, "sha256": embedded.sha256()}
        size = self.path.stat().st_size
        return {
            "source": self.source,
            "file": self.path.name,
            "sha256": artifact_cache.sha256_of(self.path),
            "bytes": size,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a config's sources in their order, and sentences on files that are missing or not read."""

    files: tuple[Input, ...]
    notes: tuple[str, ...]


def locate(names: Sequence[str], data_dir: Path | None, say: Say, *, stand_in: bool) -> Inputs:
    """Returns the files of the sources `names`; a source that no data folder has is fetched, if it can be.

    Args:
      stand_in: whether the embedded pack, where it is among the names, may stand in for a source that is missing, and
        a part of a source for the source.

    Raises UserError where a source is missing or incomplete, and nothing may stand in for it.
    """
    search = _search(names, data_dir, say, partly=stand_in)
    missing = [name for name in search.absent if not search.found[name]]
    notes = []
    if search.absent:
        what = f"No files of {', '.join(missing)}" if missing else f"Only a part of {', '.join(search.absent)}"
        if not stand_in or (missing and "embedded" not in names):
            raise UserError(
                f"{what} on this machine. Missing: {search.missing}. {search.told} Or leave the source out of "
                "--config.data.sources, for the base of a chat recipe --config.base.data.sources. Only a preset named "
                "nano trains without a source that it names, and only where it names embedded too."
            )
        fate = "the embedded pack stands in for them" if missing else "the run uses that part"
        notes.append(f"{what}: {fate}. Missing: {search.missing}. {search.told}")
    if strays := sources.unclaimed(data_folders(data_dir)):
        notes.append(f"Not read, because no source has a file of that name: {few(strays)}.")
    return Inputs(search.inputs, tuple(notes))


@dataclasses.dataclass(frozen=True, slots=True)
class _Search:
    """The result of a search for sources.

    Attributes:
      found: source -> its files.
      absent: source -> the names of its files that were not found; a complete source is left out.
      told: where was searched, what lies there, why nothing was fetched, and what to do, in sentences.
    """

    found: dict[str, list[Path]]
    absent: dict[str, list[str]]
    told: str

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What was found; of a source that comes with the package, the source."""
        paths = {name: found if sources.SOURCES[name].stems else [None] for name, found in self.found.items()}
        return tuple(Input(name, path) for name in paths for path in paths[name])

    @property
    def missing(self) -> str:
        """The names of all files that were not found."""
        return ", ".join(map(few, self.absent.values()))


def _search(names: Sequence[str], data_dir: Path | None, say: Say, *, partly: bool) -> _Search:
    """Searches the data folders, and fetches what none has; with `partly`, not a source of which one has a part."""
    folders = data_folders(data_dir)

    def look() -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
        found = {name: sources.locate(name, folders) for name in names}
        return found, {name: absent for name in names if (absent := sources.absent(name, found[name]))}

    found, absent = look()
    why: dict[str, str] = {}
    if wanted := [name for name in absent if not (partly and found[name])]:
        why = fetch.bring(wanted, cache_dir() / "data", say)
        found, absent = look()
    near = _near(found, absent, folders)
    published = [name for name in absent if name in PUBLISHED]
    told = [
        f"Searched, plain and as .xz, .gz or .zip: {', '.join(map(str, folders))}, and raw/ and corpus/ in each.",
        f"Found there: {few(near)}." if near else "",
        f"Not fetched: {'; '.join(dict.fromkeys(why.values()))}." if why else "",
        "Set GHOST_DATA or --data_dir to the folder that holds raw/ and corpus/"
        + (f", or run python -m ghost_jax.data.fetch --sources={','.join(published)}." if published else "."),
    ]
    return _Search(found, absent, " ".join(filter(None, told)))


def _near(found: dict[str, list[Path]], absent: dict[str, list[str]], folders: Sequence[Path]) -> list[str]:
    """Returns the parts that there are of incomplete sources, and files whose names are like one that is absent."""
    parts = [f"{path} (a part of {name})" for name in absent for path in found[name]]
    used = {path for paths in found.values() for path in paths}
    others = [path for folder in folders for path in listed(folder) if path not in used]
    called = [stem(path.name).lower() for path in others]
    like = {each for names in absent.values() for name in names for each in difflib.get_close_matches(name, called)}
    return parts + [str(path) for path, name in zip(others, called, strict=True) if name in like]


def few(things: Sequence[object]) -> str:
    """Returns the things as a list, the first five of many."""
    more = f" and {len(things) - 5} more" if len(things) > 5 else ""
    return ", ".join(map(str, things[:5])) + more


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

        np.save(folder / FINGERPRINTS, dedup.fingerprints(written()))
        if not documents:
            raise UserError(
                f"{given.path} holds no document. Fetch the file again, or leave {given.source} out of "
                "--config.data.sources."
            )
        return {"licenses": licenses, "documents": documents}

    return artifact_cache.build("part", _made_by([given.source]), given.identity(), write)


def _made_by(names: Iterable[str]) -> list[ModuleType]:
    """Returns the modules that decide the documents of sources, and which of them are duplicates."""
    rows = [sources.SOURCES[name] for name in names]
    return list(dict.fromkeys([module for row in rows for module in (row.reader, *row.shared)] + _OF_ALL))


# ---- Together ----


def corpus_store(inputs: Inputs, say: Say) -> Path:
    """Returns the store of all inputs' documents, each duplicate of an earlier one left out and counted.

    Raises UserError for an input that is damaged or holds no document.
    """
    names = list(dict.fromkeys(each.source for each in inputs.files))
    made_from = {"inputs": [each.identity() for each in inputs.files], "sources": names}

    def write(folder: Path) -> dict:
        parts = part_stores(inputs.files, say)
        documents: Counter[str] = Counter()
        dropped: Counter[tuple[str, str]] = Counter()
        licenses: dict[str, str] = {}
        say("dropping duplicates")
        reasons = dedup.judge(np.concatenate([np.load(part / FINGERPRINTS) for part in parts]))
        with (folder / "documents.jsonl").open("wb") as file:
            for line, reason in zip(itertools.chain.from_iterable(map(_lines, parts)), reasons, strict=True):
                if reason:
                    dropped[json.loads(line)["source"], reason] += 1
                else:
                    file.write(line)
        for part in parts:
            licenses |= artifact_cache.manifest(part).licenses
            documents.update(artifact_cache.manifest(part).documents)
        by_source = {source: {r: dropped[source, r] for r in dedup.REASONS} for source, _ in dropped}
        for source, counts in by_source.items():
            documents[source] -= sum(counts.values())
        return {"documents": documents, "duplicates_dropped": by_source, "licenses": licenses}

    return artifact_cache.build("corpus", _made_by(names), made_from, write)


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
        return {"passages": len(index), "inputs": artifact_cache.manifest(corpus).made_from["inputs"]}

    return artifact_cache.build("index", (bm25,), {"corpus": corpus.name, "sources": indexed}, write)


def book_corpus(data_dir: Path | None, say: Say, names: Sequence[str] = PUBLISHED_BOOK) -> Path:
    """Returns the corpus store of the open book: the reference pages that questions are answered from.

    Raises:
      UserError: a file of a source is neither on this machine nor can it be fetched. An open book with a part missing
        would be another book, and its figure no figure of this one.
    """
    search = _search(names, data_dir, say, partly=False)
    if search.absent:
        raise UserError(f"The open book lacks {search.missing}. {search.told}")
    return corpus_store(Inputs(search.inputs, ()), say)
