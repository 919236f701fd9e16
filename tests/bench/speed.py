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
from tests.bench.work import Work

PACKAGES = ("jax", "flax", "torch", "transformers")
# A GPU's turn holds so many updates that starting one costs nothing beside them.
CPU = Work("small36m", batch_size=8, seq_len=512, steps=1, rounds=7, questions=2500)
GPU = dataclasses.replace(CPU, batch_size=64, seq_len=1024, steps=10, product=8192)
TINY = {"size": "nano", "batch_size": 4, "seq_len": 64, "rounds": 2, "questions": 8}
SHORT = dataclasses.replace(CPU, **TINY, product=256, prompt_tokens=32, new_tokens=16, batches=8)


def run(chosen: Sequence[str], short: bool, changes: dict, out: Path) -> str:
    """Measures the chosen comparisons; writes the day's record into a folder, anew after each of them.

    Others of the same day, machine, packages and work that are there already are kept. Each says which code it is of.
    Returns the table of what is wanted, of the record alone.

    Raises UserError where a record that is there cannot be read.
    """
    table.read_all(out)  # first of all: what follows takes minutes, and writes beside them
    with tempfile.TemporaryDirectory(prefix="ghost_jax-bench-") as folder:
        machine, work, subjects = _prepared(chosen, short, changes, Path(folder))
        code = machine.pop("code")
        head = {
            "date": datetime.date.today().isoformat(),
            "machine": machine,
            "packages": _packages(),
            # Where this machine keeps its files is nobody's business.
            "work": dataclasses.asdict(work) | {"items": "/".join(Path(work.items).parts[-2:])},
        }
        record = json.loads(json.dumps(head))  # as it is read again, with lists for tuples
        path = out / table.file_name(record)
        record["measured"] = measured_before(table.read_all(out).get(path.name, {}), record)
        for name in chosen:
            measure = COMPARISONS[name].measure
            measured = measure(subjects[name], lambda line, name=name: print(f"{name}: {line}", flush=True))
            head = {"about": measure.__doc__.splitlines()[0], "changes": dict(COMPARISONS[name].changes), "code": code}
            found = record["measured"] | {name: head | measured}
            record["measured"] = {each: found[each] for each in COMPARISONS if each in found}  # in the table's order
            write_json(path, record)
    return table.summary([record])


def measured_before(before: dict, record: dict) -> dict:
    """Returns the comparisons of the record `before` that a run under this `record`'s head need not repeat."""
    head = {key: value for key, value in before.items() if key != "measured"}
    return before["measured"] if before and head == record else {}


def _prepared(chosen: Sequence[str], short: bool, changes: dict, folder: Path) -> tuple[dict, Work, dict[str, Subject]]:
    """Returns the machine, the work, and what each comparison works on, its files written.

    By a process that ends with it: this one holds no device, and no memory that the sides would seem to have.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        machine = pool.submit(_call, "machine").result()
        work = dataclasses.replace(SHORT if short else CPU if machine["platform"] == "cpu" else GPU, **changes)
        works = {name: dataclasses.replace(work, **COMPARISONS[name].changes) for name in chosen}
        subjects = {}
        for number, each in enumerate(dict.fromkeys(works.values())):
            own = folder / str(number)
            own.mkdir()
            names = [name for name in chosen if works[name] == each]
            makers = dict.fromkeys(maker for name in names for maker in COMPARISONS[name].files)
            written = {maker: pool.submit(_call, maker, each, str(own)).result() for maker in makers}
            items = written.get(CHAT, {}).get("items", each.items)
            subject = Subject(dataclasses.replace(each, items=items), own, written.get(BASE, {}))
            subjects |= dict.fromkeys(names, subject)
    return machine, work, subjects


def _call(name: str, *arguments: object) -> dict:
    return getattr(importlib.import_module("tests.bench.subject"), name)(*arguments)


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@command
def main(argv: Sequence[str]) -> int:
    """Measures speed against peers, side by side; writes speed-DATE-PROCESSOR.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed", description=main.__doc__)
    parser.add_argument(
        "--out", required=True, type=local_path, metavar="DIR", help="where the record and its table go"
    )
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(COMPARISONS)} (default: all)")
    parser.add_argument("--short", action="store_true", help="everything small and two turns a side: does it work?")
    parser.add_argument("--items", metavar="FILE", help="of the questions (default: the chat recipe's held-out ones)")
    flags = parser.parse_args(argv)
    chosen = flags.only.split(",") if flags.only else list(COMPARISONS)
    for name in chosen:
        if name not in COMPARISONS:
            raise UsageError(f"--only names {name}, which is no comparison.{did_you_mean(name, list(COMPARISONS))}")
    print(run(chosen, flags.short, {"items": flags.items} if flags.items else {}, flags.out))
    print(f"\nAll sides, their turns, first calls and memory: speed-*.json in {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
