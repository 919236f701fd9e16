"""Time and memory of preparing data here and on Beam's direct runner: `python -m tests.bench.preparation --out=FILE`.

It runs by a Python that has requirements-beam.txt, from an empty cache each time. Copies of the corpus have a fifth of
their words drawn anew, so that no copy is dropped as a duplicate, and no facts.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path
from ghost_jax.data.corpus import DOCUMENTS, documents_of
from ghost_jax.data.storage.array_record import lengths_of, open_examples
from ghost_jax.data.storage.artifact_cache import Manifest, manifest
from tests.bench.subject import machine

SIDES = {"local": [], "direct": ["--runner=direct"]}
# Stage -> how the first line begins that is printed in it; "read" has the start of the command, "end" the summary.
STAGES = {"parts": "reading", "join": "dropping", "vocabulary": "training", "windows": "building", "end": "corpus"}
CHANGED = 0.2  # of the words of a copy


def prepare(words: Sequence[str], cache: Path) -> dict:
    """Runs the command; returns its seconds, those of its stages, and the peak memory of all its processes, bytes."""
    words = [sys.executable, "-m", "ghost_jax.data.prepare", *words]
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    peak, began_at = 0, {"start": 0.0}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(0.2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for line in process.stdout:
            text = line.removeprefix("[data] ")
            for stage, beginning in STAGES.items():
                if text.startswith(beginning):
                    began_at.setdefault(stage, time.monotonic() - began)
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    times = list(began_at.items())
    stages = {name: round(until - at, 1) for (name, at), (_, until) in itertools.pairwise(times)}
    return {"seconds": round(time.monotonic() - began, 1), "stages": stages, "peak_bytes": peak}


def memory_of(pid: int) -> int:
    """Returns the memory of a process and its children, bytes; what several share counts once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_full_info().pss
    except psutil.Error:  # one has ended
        pass
    return total


def store(cache: Path, kind: str) -> tuple[Path, Manifest]:
    """Returns the only store of a kind."""
    (found,) = (cache / "ghost_jax" / "stores").glob(f"{kind}-*")
    return found, manifest(found)


def hash_of_rows(store: Path) -> dict[str, str]:
    """Returns for each split of a dataset the hash of its decoded rows in order, and of their lengths."""
    ((name, splits),) = manifest(store).datasets.items()
    hashes = {}
    for split in splits:
        digest = hashlib.sha256(lengths_of(store, name, split).tobytes())
        for row in open_examples(store, name, split):
            for value in row.values():
                digest.update(value if isinstance(value, bytes) else value.tobytes())
        hashes[split] = digest.hexdigest()
    return hashes


def write_copies(corpus: Path, folder: Path, copies: int) -> None:
    """Writes varied copies of a corpus, each as one file a source."""
    pool = list({word: None for record in documents_of(corpus) for word in record.text.split()[:50]})[:50_000]
    folder.mkdir()
    for copy in range(copies):
        rng = random.Random(copy)
        files = {}
        for number, record in enumerate(documents_of(corpus)):
            name = f"{record.source}-{copy}"
            file = files.get(name) or files.setdefault(name, (folder / f"{name}.jsonl").open("w", encoding="utf-8"))
            words = [rng.choice(pool) if rng.random() < CHANGED else word for word in record.text.split(" ")]
            row = {"id": f"{copy}-{number}", "title": record.title, "text": " ".join(words)}
            file.write(json.dumps(row) + "\n")
        for file in files.values():
            file.close()


@command
def main(argv: Sequence[str]) -> int:
    """Measures preparation of a corpus and of copies of it, on each side, and writes a record."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.preparation", description=main.__doc__)
    add = parser.add_argument
    add("--out", required=True, type=local_path, metavar="FILE", help="the record")
    add("--config", default="configs/pretrain_v05.py", help="of a base (default: configs/pretrain_v05.py)")
    add("--sources", default="cti,cve,attack,capec,cwe", help="the corpus (default: cti,cve,attack,capec,cwe)")
    add("--copies", default="1,4", help="sizes, in multiples of the corpus, from 1 on (default: 1,4)")
    add("--beam", action="append", default=[], metavar="KEY=VALUE", help="a pipeline option of the direct runner")
    flags = parser.parse_args(argv)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "copies"
        for size in map(int, flags.copies.split(",")):
            if size > 1:
                write_copies(store(Path(folder) / "local-1", "corpus")[0], copies, size - 1)
            sources = f"{flags.sources},{copies}/" if size > 1 else flags.sources
            rows = {}
            for side, words in SIDES.items():
                cache = Path(folder) / f"{side}-{size}"
                flags_of_run = [f"--config={flags.config}", f"--config.data.sources={sources}", *words]
                flags_of_run += [f"--beam.{option}" for option in flags.beam] if words else []
                found = prepare(flags_of_run, cache)
                corpus, about = store(cache, "corpus")
                pretrain, counted = store(cache, "pretrain")
                rows[side] = counted.datasets, hash_of_rows(pretrain)
                of_corpus = {"bytes": (corpus / DOCUMENTS).stat().st_size, "documents": sum(about.documents.values())}
                tokens = sum(split.tokens for split in counted.datasets["pretrain"].values())
                of_corpus |= {"tokens": tokens, "rows": rows[side][1]}
                runs.append({"side": side, "size": size, **of_corpus, **found})
                print(json.dumps(runs[-1]), flush=True)
            if rows["local"] != rows["direct"]:
                raise SystemExit("the sides wrote different rows")
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "config": flags.config, "beam": flags.beam}
    write_json(flags.out, about | {"changed_words": CHANGED, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
