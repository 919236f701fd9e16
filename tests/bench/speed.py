"""How fast this is beside its peers: `python -m tests.bench.speed --out=DIR [--only=pretrain,letters] [--short]`.

Each comparison lets its sides take turns on the same machine, in processes of their own of which one runs at a time.
What is measured on one day goes into one record, so that a run can be split by --only.
Peers are not part of the project. Where they are missing they are left out, and the record says so. In a folder of
their own (PYTHONPATH=report/peers) they leave the product as its users have it, which the time of a start needs:

    pip install --target=report/peers torch==2.13.0 transformers==5.23.0     # torch.compile asks for g++ beside
"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import UsageError, command, did_you_mean
from ghost_jax.core.paths import local_path
from tests.bench import table
from tests.bench.comparisons import BASE, CHAT, COMPARISONS, Subject
from tests.bench.work import Work, precisions_of

PACKAGES = ("jax", "flax", "torch", "transformers")
# A GPU's turn holds so many updates that starting one costs nothing beside them.
CPU = Work("small36m", batch_size=8, seq_len=512, steps=1, rounds=7, questions=2500)
GPU = dataclasses.replace(CPU, batch_size=64, seq_len=1024, steps=10, product=8192)
TINY = {"size": "nano", "batch_size": 4, "seq_len": 64, "rounds": 2, "questions": 8}
SHORT = dataclasses.replace(CPU, **TINY, product=256, prompt_tokens=32, new_tokens=16, batches=8)


def run(chosen: Sequence[str], short: bool, items: str, out: Path) -> str:
    """Measures the chosen comparisons; writes the day's record into a folder, anew after each of them.

    Others of the same day, machine, packages and work that are there already are kept. Each says which code it is of.
    Returns the table of what is wanted, of the record alone.

    Raises UserError where a record that is there cannot be read.
    """
    table.read_all(out)  # first of all: what follows takes minutes, and writes beside them
    machine = _in_child("machine")
    code = machine.pop("code")
    work = dataclasses.replace(SHORT if short else CPU if machine["platform"] == "cpu" else GPU, items=items)
    head = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
        # Where this machine keeps its files is nobody's business.
        "work": dataclasses.asdict(work) | {"items": "/".join(Path(items).parts[-2:])},
    }
    head = json.loads(json.dumps(head))  # as it is read again, with lists for tuples
    path = out / table.file_name(head)
    before = table.read_all(out).get(path.name, {"measured": {}})
    measured = before.pop("measured")
    record = head | {"measured": measured if before == head else {}}
    with tempfile.TemporaryDirectory(prefix="ghost_jax-bench-") as folder:
        for name in chosen:
            comparison = COMPARISONS[name]
            changed = dataclasses.replace(work, **comparison.changes)
            subject = _prepared(changed, comparison.files, Path(folder) / name, precisions_of(machine))
            found = comparison.measure(subject, lambda line, name=name: print(f"{name}: {line}", flush=True))
            about = {"about": comparison.measure.__doc__.splitlines()[0], "changes": dict(comparison.changes)}
            found = record["measured"] | {name: about | {"code": code} | found}
            record["measured"] = {each: found[each] for each in COMPARISONS if each in found}  # in the table's order
            write_json(path, record)
    return table.summary([record])


def _prepared(work: Work, makers: Sequence[str], folder: Path, precisions: tuple[str, ...]) -> Subject:
    """Returns what a comparison works on, its files written."""
    folder.mkdir()
    written = {maker: _in_child(maker, work, str(folder)) for maker in makers}
    items = written.get(CHAT, {}).get("items", work.items)
    return Subject(dataclasses.replace(work, items=items), folder, written.get(BASE, {}), precisions)


def _in_child(name: str, *arguments: object) -> dict:
    """Returns what a function of `tests.bench.subject` returns in a process that ends with it.

    This one holds no device, and no memory that the sides would seem to have.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, name, *arguments).result()


def _call(name: str, *arguments: object) -> dict:
    return getattr(importlib.import_module("tests.bench.subject"), name)(*arguments)


@command
def main(argv: Sequence[str]) -> int:
    """Measures speed against peers, side by side; writes speed-DATE-PROCESSOR.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed", description=main.__doc__)
    option = parser.add_argument
    option("--out", required=True, type=local_path, metavar="DIR", help="where the record goes")
    option("--only", metavar="NAME,…", help=f"some of {', '.join(COMPARISONS)} (default: all)")
    option("--short", action="store_true", help="everything small and two turns a side: does it work?")
    option("--items", default="", metavar="FILE", help="of the questions (default: the chat recipe's held-out ones)")
    flags = parser.parse_args(argv)
    chosen = flags.only.split(",") if flags.only else list(COMPARISONS)
    for name in chosen:
        if name not in COMPARISONS:
            raise UsageError(f"--only names {name}, which is no comparison.{did_you_mean(name, list(COMPARISONS))}")
    print(run(chosen, flags.short, flags.items, flags.out))
    print(f"\nAll sides, their turns, first calls and memory: speed-*.json in {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
