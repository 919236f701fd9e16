"""What is compared with what: `COMPARISONS` is the table."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from ghost_jax import HUGE_PAGES
from tests.bench import start
from tests.bench.turns import Contender, compare
from tests.bench.work import PRECISIONS, TOLERANCE, Work

OURS, TRL = "ghost_jax", "padded, as TRL's defaults"
PADDED, GENERATE = "transformers, padded", "transformers generate"
PEERS = ("torch", "transformers")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What all sides of a comparison work on.

    Attributes:
      work, folder: how much, and where its files are.
      base: what `tests.bench.subject.write_base` says; empty where no comparison asked for it.
      precisions: those that are measured.
    """

    work: Work
    folder: Path
    base: Mapping
    precisions: tuple[str, ...] = PRECISIONS

    def contender(
        self, name: str, side: str, unit: str, tolerance: float | None = None, programs: tuple = (), **arguments: object
    ) -> Contender:
        """Returns a side of `tests.bench.ours` or `tests.bench.on_torch` that works on this."""
        arguments |= {"work": dataclasses.asdict(self.work), "folder": str(self.folder)}
        ours = side.startswith("ours:")
        needs, environment = ((), {"GLIBC_TUNABLES": HUGE_PAGES}) if ours else (PEERS, {})
        return Contender(name, f"tests.bench.{side}", arguments, unit, needs, programs, environment, tolerance)

    def in_each(self, name: str, side: str, unit: str, **given: object) -> list[Contender]:
        """Returns a side once in each precision, as "NAME, float32" and "NAME, bfloat16"."""
        return [
            self.contender(f"{name}, {precision}", side, unit, TOLERANCE[precision], dtype=precision, **given)
            for precision in self.precisions
        ]


def product(subject: Subject, say: Say) -> dict:
    """Products of large matrices: the rate that the machine allows, XLA's and PyTorch's."""
    xla = subject.in_each("XLA", "ours:Product", "FLOP")
    peer = subject.in_each("PyTorch", "on_torch:Product", "FLOP")
    return compare([*xla, *peer], subject.work.rounds, say)


def pretrain(subject: Subject, say: Say) -> dict:
    """A pretraining step of random tokens against PyTorch's, under bfloat16 autocast too."""
    peer = {"shape": subject.base["shape"], "parameters": subject.base["parameters"]}
    sides = [
        *subject.in_each(OURS, "ours:Pretrain", "tokens"),
        *subject.in_each("torch.compile", "on_torch:Pretrain", "tokens", programs=("g++",), compiled=True, **peer),
        *subject.in_each("PyTorch eager", "on_torch:Pretrain", "tokens", compiled=False, **peer),
    ]
    record = compare(sides, subject.work.rounds, say)
    return record | {name: subject.base[name] for name in ("parameters", "flops_per_token")}


def sft(subject: Subject, say: Say) -> dict:
    """Chat tuning on the recipe's real mixture: packed rows against a padded loop, tokens that are no padding."""
    unit = "useful tokens"
    ours = subject.in_each(OURS, "ours:Sft", unit)
    return compare([*ours, *subject.in_each(TRL, "on_torch:Sft", unit)], subject.work.rounds, say)


def letters(subject: Subject, say: Say) -> dict:
    """Letters of questions in four orders, against transformers in padded batches sorted by length."""
    ours = subject.in_each(OURS, "ours:Letters", "prompts")
    return compare([*ours, *subject.in_each(PADDED, "on_torch:Letters", "prompts")], subject.work.rounds, say)


def decoding(subject: Subject, say: Say) -> dict:
    """A text at batch 1, its prompt read included, against transformers' generate."""
    ours = subject.in_each(OURS, "ours:Decoding", "tokens", streamed=False)
    streamed = subject.in_each("ghost_jax streamed", "ours:Decoding", "tokens", streamed=True)
    generate = subject.in_each(GENERATE, "on_torch:Decoding", "tokens")
    return compare([*ours, *streamed, *generate], subject.work.rounds, say)


def loader(subject: Subject, say: Say) -> dict:
    """Batches of the chat recipe's packed mixture, read, packed and filled, without training on them."""
    return compare([subject.contender(OURS, "ours:Loader", "tokens")], subject.work.rounds, say)


def starting(subject: Subject, say: Say) -> dict:
    """From the shell to the end of the first update, found compiled and prepared."""
    return start.measure(subject.work, say)


# What each needs of `tests.bench.subject` beside it
BASE, CHAT, RECORDS = "write_base", "write_chat", "write_records"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row of `COMPARISONS`.

    Attributes:
      measure: takes its sides' turns.
      files: the functions of `tests.bench.subject` that write what it needs.
      changes: fields of `Work` that are its own.
    """

    measure: Callable[[Subject, Say], dict]
    files: tuple[str, ...] = ()
    changes: Mapping = dataclasses.field(default_factory=dict)


COMPARISONS = {
    "product": Comparison(product),
    "pretrain": Comparison(pretrain, (BASE,)),
    "pretrain-mini": Comparison(pretrain, (BASE,), {"size": "mini", "steps": 2}),
    "pretrain-nano": Comparison(pretrain, (BASE,), {"size": "nano", "steps": 4}),
    "sft": Comparison(sft, (CHAT, RECORDS)),
    "letters": Comparison(letters, (CHAT,)),
    "decoding": Comparison(decoding, (CHAT,)),
    "loader": Comparison(loader),
    "start": Comparison(starting),
}
