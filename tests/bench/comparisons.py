"""What is compared with what: `COMPARISONS` is the table."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench import slices, start
from tests.bench.turns import Contender, compare
from tests.bench.work import Work

OURS = "ghost_jax"
PEERS = ("torch", "transformers")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What all sides of a run of the benchmark work on.

    Attributes:
      work, folder: how much, and where its files are.
      machine: what `tests.bench.subject.machine` says.
      base: what `tests.bench.subject.write_base` says; empty where no comparison asked for it.
    """

    work: Work
    folder: Path
    machine: Mapping
    base: Mapping

    def contender(self, name: str, side: str, unit: str, **given: object) -> Contender:
        """Returns a side of `tests.bench.ours` or `tests.bench.on_torch` that works on this."""
        arguments = {"work": dataclasses.asdict(self.work), "folder": str(self.folder)}
        return Contender(name, f"tests.bench.{side}", arguments | given.pop("arguments", {}), unit, **given)


def pretrain(subject: Subject, say: Say) -> dict:
    """A pretraining step against PyTorch's, and both against what the machine can multiply."""
    peer = {"shape": subject.base["shape"], "parameters": subject.base["parameters"]}
    sides = [
        subject.contender(OURS, "ours:Pretrain", "tokens"),
        subject.contender(
            "torch.compile",
            "on_torch:Pretrain",
            "tokens",
            arguments=peer | {"compiled": True},
            needs=PEERS,
            programs=("g++",),
        ),
        subject.contender(
            "PyTorch eager", "on_torch:Pretrain", "tokens", arguments=peer | {"compiled": False}, needs=PEERS
        ),
        subject.contender("matrix product, XLA", "ours:Product", "FLOP"),
        subject.contender("matrix product, PyTorch", "on_torch:Product", "FLOP", needs=PEERS),
    ]
    record = compare(sides, subject.work.rounds, say)
    measured = max(side["per_s"] for side in record["sides"].values() if side["unit"] == "FLOP")
    ceiling = subject.machine["peak_flops"] or measured
    flops = {
        name: side["per_s"] * subject.base["flops_per_token"]
        for name, side in record["sides"].items()
        if side["unit"] == "tokens"
    }
    return record | {
        "parameters": subject.base["parameters"],
        "flops_per_token": subject.base["flops_per_token"],
        "ceiling_flops_per_s": ceiling,
        "ceiling": "the chip's data sheet" if subject.machine["peak_flops"] else "the faster matrix product, measured",
        "share_of_ceiling": {name: rate / ceiling for name, rate in flops.items()},
    }


def sft(subject: Subject, say: Say) -> dict:
    """Chat tuning on the recipe's real mixture: packed rows against a padded loop, tokens that are no padding."""
    unit = "useful tokens"
    ours = subject.contender(OURS, "ours:Sft", unit)
    padded = subject.contender("padded, as TRL's defaults", "on_torch:Sft", unit, needs=PEERS)
    return compare([ours, padded], subject.work.rounds, say)


def letters(subject: Subject, say: Say) -> dict:
    """Letters of questions in four orders, against transformers in padded batches sorted by length."""
    ours = subject.contender(OURS, "ours:Letters", "prompts")
    padded = subject.contender("transformers, padded", "on_torch:Letters", "prompts", needs=PEERS)
    return compare([ours, padded], subject.work.rounds, say)


def decoding(subject: Subject, say: Say) -> dict:
    """A text at batch 1, its prompt read included, against transformers' generate."""
    ours = subject.contender(OURS, "ours:Decoding", "tokens", arguments={"streamed": False})
    streamed = subject.contender("ghost_jax, streamed", "ours:Decoding", "tokens", arguments={"streamed": True})
    generate = subject.contender("transformers generate", "on_torch:Decoding", "tokens", needs=PEERS)
    return compare([ours, streamed, generate], subject.work.rounds, say)


def devices(subject: Subject, say: Say) -> dict:
    """The same step on one device and spread over several simulated ones: what spreading costs, on the same cores."""
    sides = [
        subject.contender(
            f"{count} device(s)",
            "ours:Pretrain",
            "tokens",
            environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
        )
        for count in subject.work.devices
    ]
    return compare(sides, subject.work.rounds, say)


def starting(subject: Subject, say: Say) -> dict:
    """From the shell to the end of the first update, found compiled and prepared."""
    return start.measure(subject.work, say)


def roofline(subject: Subject, say: Say) -> dict:
    """What slices of TPUs would allow at most, and from how many chips on their links are the limit."""
    return slices.measure(subject.work, say)


# What each needs of `tests.bench.subject` beside it
BASE, CHAT, RECORDS = "write_base", "write_chat", "write_records"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row of `COMPARISONS`: how it is measured, and the functions of `tests.bench.subject` that write its files."""

    measure: Callable[[Subject, Say], dict]
    files: tuple[str, ...]


COMPARISONS = {
    "pretrain": Comparison(pretrain, (BASE,)),
    "sft": Comparison(sft, (CHAT, RECORDS)),
    "letters": Comparison(letters, (CHAT,)),
    "decoding": Comparison(decoding, (CHAT,)),
    "start": Comparison(starting, ()),
    "devices": Comparison(devices, (BASE,)),
    "slices": Comparison(roofline, ()),
}
