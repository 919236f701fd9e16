"""The documents of a config's sources: one part an input file, then all parts together without duplicates.

Parts are built on all cores, or by the workers of Apache Beam (`beam.py`). They are joined in one order, so the corpus
is the same byte for byte on any number of workers.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from ghost_jax.config.keys import is_path
from ghost_jax.core.addresses import is_offline
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.paths import cache_dir, data_folders
from ghost_jax.data import dedup, fetch
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.own import text
from ghost_jax.data.retrieval import bm25
from ghost_jax.data.retrieval.bm25 import Index, passages_of
from ghost_jax.data.sources import SOURCES, data_files, embedded
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.tables import suffix_of

Say = Callable[[str], None]
Judged = tuple[list[Path], Iterable[str]]  # the parts, and for each document in them why it is dropped, or ""
PUBLISHED_BOOK = ("attack", "capec", "cwe")  # the sources of the open book
DOCUMENTS, FINGERPRINTS = "documents.jsonl", "fingerprints.npy"
PARALLEL_BYTES = 4 << 20  # of input; below it, starting processes takes longer than reading


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One file of a source, None for the package's; or `own` files in the folder `path`, with text under `key`."""

    source: str
    path: Path | None
    own: tuple[Path, ...] = ()
    key: str = "text"

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.own or filter(None, [self.path]))

    def __str__(self) -> str:
        return str(self.own[0] if len(self.own) == 1 else self.path or "in the package")

    def absolute(self) -> "Input":
        """Returns the same input by absolute paths."""
        path, own = self.path and self.path.absolute(), tuple(each.absolute() for each in self.own)
        return dataclasses.replace(self, path=path, own=own)

    def identity(self) -> dict:
        """Returns what identifies its content."""
        if self.path is None:
            return {"source": self.source, "sha256": embedded.sha256()}
        of_key = {} if self.key == "text" else {"key": self.key}
        if len(self.own) > 1:
            content = [[text.place_of(path, self.path), artifact_cache.sha256_of(path)] for path in self.own]
            name, sha256 = self.source, artifact_cache.fingerprint(content)
        else:
            (path,) = self.own or [self.path]
            name = text.name_in(path, self.path) if self.own else path.name
            sha256 = artifact_cache.sha256_of(path)
        return {"source": self.source, "file": name, "sha256": sha256, "bytes": self.size} | of_key


def locate(
    names: Sequence[str], data_dir: Path | None, say: Say, *, stand_in: bool
) -> tuple[list[Input], tuple[str, ...]]:
    """Returns the files of the sources `names` in their order, and notes on files that are missing or not read.

    A source that no data folder has is fetched if possible.

    Args:
      stand_in: whether the embedded pack, if it is among the names, replaces a source that is missing, and a part of a
        source is enough.

    Raises UserError where a source is missing or incomplete and nothing replaces it.
    """
    own, notes = _own_inputs(names)
    folders = data_folders(data_dir)
    published = [name for name in names if name not in own]
    found, absent = _found(published, folders)
    reasons: dict[str, str] = {}
    # Where a source without a publisher is missing, the run is refused, and nothing is fetched.
    unpublished = [] if stand_in else [name for name in absent if name not in PUBLISHED]
    if wanted := [name for name in absent if not (stand_in and found[name])]:
        if not unpublished and not is_offline():
            listed = ",".join(wanted)
            say(f"{listed}: not on this machine; fetching, as python -m ghost_jax.data.fetch --sources={listed} does")
        reasons = fetch.bring(unpublished or wanted, cache_dir() / "data", say)
        found, absent = _found(published, folders)
    read = {path.resolve() for each in itertools.chain(*own.values()) for path in each.own}
    strays = [path for path in data_files.unclaimed(folders) if path.resolve() not in read]
    if absent:
        missing = [name for name in absent if not found[name]]
        what = f"No files of {', '.join(missing)}" if missing else f"Only a part of {', '.join(absent)}"
        where = _where(found, absent, folders, strays, reasons)
        if not stand_in or (missing and "embedded" not in names):
            out = unpublished or list(absent)
            kept = ",".join(name for name in names if name not in out)
            raise UserError(
                f"{what} on this machine. {where}"
                + (
                    f" Or leave out {', '.join(out)}: --config.data.sources={kept}, of a chat recipe without --base "
                    f"--config.base.data.sources={kept} too, or of a book --book={kept}."
                    if kept
                    else ""
                )
                + " Only a preset named nano trains without a source that it names, where it names embedded too."
            )
        notes += [f"{what}: {'the embedded pack stands in for them' if missing else 'the run uses that part'}. {where}"]
    elif strays:
        notes += [f"Not read, because no source has a file of that name: {few(strays)}."]
    paths = {name: found[name] if SOURCES[name].stems else [None] for name in published}
    inputs = [each for name in names for each in own.get(name) or [Input(name, path) for path in paths[name]]]
    return inputs, tuple(notes)


def book_corpus(data_dir: Path | None, say: Say, named: str = "open") -> Path:
    """Returns the corpus store of a book, the pages that questions are answered from.

    `named` is "open" for ATT&CK, CAPEC and CWE, or entries of `data.sources` separated by commas: "docs/,cwe".

    Raises UserError where a source is missing or incomplete: a book without a part would give other scores.
    """
    names = PUBLISHED_BOOK if named == "open" else [name for name in map(str.strip, named.split(",")) if name]
    if not names:
        raise UsageError(f"--book is empty. Use open, or name files, folders or sources ({', '.join(SOURCES)}).")
    for name in names:
        if not (name in SOURCES or is_path(name) or Path(name).exists()):
            raise UsageError(f"--book names {name}: no file or folder, and no source ({', '.join(SOURCES)}).")
    names = [name if name in SOURCES or is_path(name) else f"./{name}" for name in names]
    inputs, notes = locate(names, data_dir, say, stand_in=False)
    for note in notes:
        say(f"NOTE: {note}")
    return corpus_store(inputs, say)


def _found(names: Sequence[str], folders: Sequence[Path]) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """Returns the files of each source, and the names of the files that an incomplete one lacks."""
    found = {name: data_files.locate(name, folders) for name in names}
    return found, {name: absent for name in names if (absent := data_files.absent(name, found[name]))}


def _where(
    found: dict[str, list[Path]],
    absent: dict[str, list[str]],
    folders: Sequence[Path],
    strays: Sequence[Path],
    reasons: dict[str, str],
) -> str:
    """Returns in sentences what is missing, where was searched, what was found there, and what to do."""
    there = [f"{path} (a part of {name})" for name in absent for path in found[name]] + [*map(str, strays)]
    published = ",".join(name for name in absent if name in PUBLISHED)
    sentences = [
        f"Missing: {', '.join(map(few, absent.values()))}.",
        f"Searched, plain and as .xz, .gz or .zip: {', '.join(map(str, folders))}, and raw/ and corpus/ in each.",
        f"Found there: {few(there)}." if there else "",
        f"Not fetched: {fetch.in_words(reasons)}." if reasons else "",
        "Set GHOST_DATA or --data_dir to the folder that holds raw/ and corpus/"
        + (f", or run python -m ghost_jax.data.fetch --sources={published}." if published else "."),
    ]
    return " ".join(filter(None, sentences))


def _own_inputs(names: Sequence[str]) -> tuple[dict[str, list[Input]], list[str]]:
    """Returns the inputs of the entries that are paths, one a table, one for all pages of an entry; and notes.

    Raises UserError where an entry has no file, or has the name of another.
    """
    inputs: dict[str, list[Input]] = {}
    notes: list[str] = []
    entries = {name: name for name in names if not is_path(name)}
    for entry in filter(is_path, names):
        name, folder, paths, key, others = text.find(entry)
        if others:
            notes.append(f"Not read of {entry}, because of their suffix: {few(others)}.")
        if name in entries:
            raise UserError(
                f"{entries[name]} and {entry} are both called {name}. Rename one, or give their folder or a pattern as "
                "one entry."
            )
        entries[name] = entry
        pages = tuple(path for path in paths if suffix_of(path) in text.PAGES)
        tables = [(path,) for path in paths if path not in pages]
        inputs[entry] = [Input(name, folder, files, key) for files in (*tables, pages) if files]
    return inputs, notes


def few(things: Sequence[object]) -> str:
    """Returns the things as a list, the first five of many."""
    more = f" and {len(things) - 5} more" if len(things) > 5 else ""
    return ", ".join(map(str, things[:5])) + more


# ---- Parts ----


def part_stores(inputs: Sequence[Input], say: Say) -> list[Path]:
    """Returns the store of each input's documents, built on all cores where there is enough to do."""
    processes = min(os.cpu_count() or 1, len(inputs))
    if processes < 2 or sum(each.size for each in inputs) < PARALLEL_BYTES:
        return [part_store(each, say) for each in inputs]
    say(f"reading {len(inputs)} files, {processes} at a time")
    # Spawned, not forked: JAX has threads, and a lock that one of them holds at a fork would never be released. `say`
    # stays here: that of a caller may be a closure, or start JAX's devices.
    longest_first = sorted(inputs, key=lambda each: -each.size)
    spawned = multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(processes, *spawned) as pool:
            try:
                places = list(pool.map(part_store, longest_first))
            except KeyboardInterrupt:
                for each in multiprocessing.active_children():
                    each.terminate()
                raise
    except BrokenProcessPool:
        raise UserError(
            "A process that read the files was killed, as the system does where the memory is full. Free some memory, "
            "and repeat the command: files that were read are kept."
        ) from None
    store_of = dict(zip(longest_first, places, strict=True))
    return [store_of[each] for each in inputs]


def part_store(given: Input, say: Say | None = None) -> Path:
    """Returns the store of an input's documents and their fingerprints.

    Raises UserError for an input that is damaged or holds no document.
    """

    def write(folder: Path) -> dict:
        if say:
            say(f"reading {given.source}: {given}")
        if given.own:
            records = text.read(given.source, given.path, given.own, given.key)
        else:
            records = data_files.read(given.source, given.path)
        licenses: dict[str, dict[str, None]] = defaultdict(dict)  # in their order, each once
        documents: Counter[str] = Counter()

        def written() -> Iterator[Record]:
            with (folder / DOCUMENTS).open("w", encoding="utf-8") as file:
                for record in records:
                    licenses[record.source][record.license or "not named"] = None
                    documents[record.source] += 1
                    file.write(json.dumps(dataclasses.asdict(record)) + "\n")
                    yield record

        np.save(folder / FINGERPRINTS, dedup.fingerprints(written()))
        if not documents:
            raise UserError(
                f"{given} holds no document. Correct or fetch the file, or leave {given.source} out of data.sources."
            )
        return {"licenses": _named(licenses), "documents": documents}

    return artifact_cache.build("part", _versions([given]), given.identity(), write)


def _named(licenses: dict[str, dict[str, None]]) -> dict[str, str]:
    """Returns source -> its licences in words."""
    return {source: few(list(found)) for source, found in licenses.items()}


def _versions(inputs: Iterable[Input]) -> dict[str, int]:
    """Returns the version of the module that reads each source, of all texts of one's own under one name."""
    readers = [("own text", text) if each.own else (each.source, data_files.reader_of(each.source)) for each in inputs]
    return {name: reader.VERSION for name, reader in readers}


# ---- Together ----


def judged_parts(inputs: Sequence[Input], say: Say) -> Judged:
    """Makes the parts on this machine, and finds the duplicates in them."""
    parts = part_stores(inputs, say)
    say("dropping duplicates")
    return parts, dedup.judge(np.concatenate([np.load(part / FINGERPRINTS, mmap_mode="r") for part in parts]))


def corpus_store(
    inputs: Sequence[Input], say: Say, judged: Callable[[Sequence[Input], Say], Judged] = judged_parts
) -> Path:
    """Returns the store of all inputs' documents without the duplicates of earlier ones, which are counted.

    Raises UserError for an input that is damaged or holds no document, and for a row of a user's table with the id of
    another document of its source.
    """
    names = list(dict.fromkeys(each.source for each in inputs))
    made_from = {"inputs": [each.identity() for each in inputs], "sources": names}

    def write(folder: Path) -> dict:
        parts, reasons = judged(inputs, say)
        documents: Counter[str] = Counter()
        dropped: dict[str, dict[str, int]] = {}
        licenses: dict[str, dict[str, None]] = defaultdict(dict)
        for part in parts:
            manifest = artifact_cache.manifest(part)
            for source, license in manifest.licenses.items():
                licenses[source][license] = None
            documents.update(manifest.documents)
        lines = ((given, line) for given, part in zip(inputs, parts, strict=True) for line in _lines(part))
        with (folder / DOCUMENTS).open("wb") as file:
            for (given, line), reason in zip(lines, reasons, strict=True):
                if not reason:
                    file.write(line)
                    continue
                record = record_of(line)
                if reason == "id" and given.own and suffix_of(given.own[0]) not in text.PAGES:
                    raise UserError(
                        f"{given}: another file before it has a document of the source {record.source} with the id "
                        f"{record.id}, too. Make each id of a source unique, or leave them out."
                    )
                documents[record.source] -= 1
                dropped.setdefault(record.source, dict.fromkeys(dedup.REASONS, 0))[reason] += 1
        return {"documents": documents, "duplicates_dropped": dropped, "licenses": _named(licenses)}

    return artifact_cache.build("corpus", _versions(inputs), made_from, write)


def _lines(part: Path) -> Iterator[bytes]:
    with (part / DOCUMENTS).open("rb") as file:
        yield from file


def documents_of(corpus: Path) -> Iterator[Record]:
    """Yields the documents of a corpus store."""
    return map(record_of, _lines(corpus))


def record_of(line: bytes) -> Record:
    """Returns the document of a line of a corpus store."""
    fields = json.loads(line)
    return Record(**{**fields, "facts": tuple(Fact(**fact) for fact in fields["facts"])})


def index_store(corpus: Path, pages_of: Iterable[str], say: Say, words: int = bm25.LINE) -> Path:
    """Returns the store of the lexical index over a corpus's pages of some sources, as documents name them.

    `words` is the length of its longest passage, see `passages_of`.
    """
    indexed = sorted(set(pages_of))

    def pages() -> Iterator[Record]:
        return (record for record in documents_of(corpus) if record.source in indexed)

    def write(folder: Path) -> dict:
        say(f"indexing the passages of {', '.join(indexed)}, at most {words} words each")
        names = {page.id: page.title for page in pages()}
        index = Index.build(passage for page in pages() for passage in passages_of(page, words, names))
        index.save(folder)
        return {"passages": len(index), "inputs": artifact_cache.manifest(corpus).made_from["inputs"]}

    return artifact_cache.build("index", {}, {"corpus": corpus.name, "sources": indexed, "words": words}, write)
