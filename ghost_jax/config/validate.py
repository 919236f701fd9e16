"""What every key of a config may be: one table, a row a key. `check` holds a config to it before anything is written.

A key that is added to `configs/common.py` gets its row here. Rules between keys are in `ghost_jax.config.load`.
"""

import ctypes
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from ghost_jax.core.errors import UsageError
from ghost_jax.data.builders import DATASETS, names_of
from ghost_jax.text.mcq_format import LAYOUTS
from ghost_jax.text.tokenizer import LEAST_TOKENS


class Domain(Protocol):
    """The values that a key may have. Its `str` follows the word "use" in a message."""

    def holds(self, value: Any) -> bool:
        """Returns whether the value is one of them."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A bool."""

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Whole:
    """An int from `low` to `high`, both included, or `also`."""

    low: int
    high: int
    also: int | None = None

    def holds(self, value: Any) -> bool:
        return type(value) is int and (self.low <= value <= self.high or value == self.also)

    def __str__(self) -> str:
        also = "" if self.also is None else f"{self.also} or "
        return f"{also}a whole number from {self.low:,} to {self.high:,}"


@dataclasses.dataclass(frozen=True)
class Real:
    """A number from `low` to `high`, both included unless `above` or `below` says otherwise.

    It is judged as float32, which is what devices compute with: a value that rounds to an excluded end, or that only
    float64 tells from 0, is refused.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            near = ctypes.c_float(value).value
        except OverflowError:  # an int beyond float64
            return False
        if not math.isfinite(near) or 0 < abs(value) < SMALLEST_FLOAT32:
            return False
        return (self.low < near if self.above else self.low <= value) and (
            near < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(name or 'nothing' for name in self.names)}"


@dataclasses.dataclass(frozen=True)
class Names:
    """A tuple of at least one name, each once; of `known` where that is given, else any that `Text` would take."""

    known: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        if not isinstance(value, tuple) or not value or len(set(value)) < len(value):
            return False
        return all(name in self.known if self.known else Text(r"[^\s,()]+", "").holds(name) for name in value)

    def __str__(self) -> str:
        known = f" of {', '.join(self.known)}" if self.known else ""
        return f"at least one name{known}, each once, with commas between"


@dataclasses.dataclass(frozen=True)
class Text:
    """A printable string of one line that matches a pattern; `about` says which in words."""

    pattern: str
    about: str

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value.isprintable() and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.about


@dataclasses.dataclass(frozen=True)
class MixtureSchedule:
    """Multipliers that change: update -> dataset -> multiplier. Which updates and datasets is a rule between keys."""

    def holds(self, value: Any) -> bool:
        return isinstance(value, ConfigDict) and all(
            isinstance(changes, ConfigDict) and all(MULTIPLIER.holds(each) for each in changes.values())
            for changes in value.values()
        )

    def __str__(self) -> str:
        return f'multipliers by update, such as {{"1500": {{"qa": 0.0}}}}, each {MULTIPLIER}'


SMALLEST_FLOAT32 = 2.0**-126  # of the normal ones: devices flush what is smaller to 0
LARGEST = 1e30  # of what is multiplied with others in float32
MOST = 10**9  # updates and the like: more than any run has, and within int32

COUNT, COUNT_OR_NONE = Whole(1, MOST), Whole(0, MOST)
SEED = Whole(0, 2**32 - 1)  # JAX takes a seed modulo 2^32, NumPy no negative one
MULTIPLIER = Real(0, 1e6)
WEIGHT = Real(0, LARGEST)
POSITIVE = Real(0, LARGEST, above=True)
AXIS = Whole(1, 10**6, also=-1)
TEXT = Text(".{0,1000}", "printable text in one line, of at most 1,000 characters")
LINE = Text(".{1,1000}", "printable text in one line, of 1 to 1,000 characters")
FOLDER = Text("[^/]{1,200}", "what can be a folder's name: 1 to 200 characters and no /")

KEY_VARIABLE = "GHOST_TEACHER_KEY"  # the environment variable with the key of `data.cot.teacher`

# The table of `ghost_jax.data.sources` holds the same names; a test compares them.
SOURCES = ("attack", "attack18", "capec", "cwe", "nvd", "kev", "exploitdb", "cti", "cve", "embedded")
BASE_DATASETS, CHAT_DATASETS = names_of("pretrain"), names_of("chat")
# Names that documents have as their source; files of one's own may have others.
QA_SOURCES = ("attack", "capec", "cwe", "cve_trickest", "nvd", "kev", "exploitdb", "ctf", "embedded")
LOSSES = ("val_loss", "val_loss_shared", *(f"val_loss_{name}" for name in DATASETS))

BOTH: dict[str, Domain] = {
    "name": FOLDER,
    "preset": Text("[^/]{0,200}", f"{FOLDER}, or nothing"),
    "spec": TEXT,
    "stage": OneOf(("pretrain", "chat")),
    "seed": SEED,
    "steps": COUNT,
    "batch_size": Whole(1, 2**20),
    "micro_batch_size": Whole(1, 2**20),
    "model.layers": Whole(1, 2**9),
    "model.width": Whole(2, 2**15),
    "model.heads": Whole(1, 2**14),
    "model.mlp_dim": Whole(1, 2**18),
    "model.vocab_size": Whole(LEAST_TOKENS, 2**20),
    "model.context": Whole(1, 2**20),
    "model.generation": OneOf(("v04", "v05")),
    "model.attention_bias": Flag(),
    "model.dropout": Real(0, 1, below=True),
    "model.dtype": OneOf(("auto", "float32", "bfloat16")),
    "model.attention": OneOf(("auto", "blocks", "cudnn", "splash")),
    "model.remat": Flag(),
    "model.scan": Flag(),
    "loss_norm": OneOf(("token_mean", "record_mean")),
    "published.run": TEXT,
    "published.steps": COUNT_OR_NONE,
    "published.rate": WEIGHT,
    "published.val_loss": WEIGHT,
    "published.accuracy": Real(0, 1),
    "published.outcome": TEXT,
    "optim.name": OneOf(("adamw", "muon")),
    "optim.schedule": OneOf(("cosine", "wsd", "constant", "linear")),
    "optim.decay_share": Real(0, 1, above=True),
    "optim.peak_lr": POSITIVE,
    "optim.min_lr": WEIGHT,
    "optim.warmup_steps": COUNT_OR_NONE,
    "optim.b1": Real(0, 1, below=True),
    "optim.b2": Real(0, 1, below=True),
    "optim.weight_decay": WEIGHT,
    "optim.clip_norm": WEIGHT,
    "data.sources": Names(SOURCES),
    "data.seq_len": Whole(1, 2**20),
    "data.mixture_schedule": MixtureSchedule(),
    "data.packing": Flag(),
    "data.truncation": OneOf(("crop", "drop")),
    "data.validation_records": COUNT_OR_NONE,
    "data.seed": SEED,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "log_every": COUNT,
    "eval_every": COUNT,
    "save_every": COUNT,
    "keep": COUNT,
    "keep_best": OneOf(("", *LOSSES)),
    "divergence.evaluations": Whole(2, MOST),
    "divergence.stop": Flag(),
    "log.wandb": Text(r"[^/\\#?%:]{0,128}", "nothing or a project: at most 128 characters and none of / \\ # ? % :"),
    "log.norms": Flag(),
    "log.trace_at": COUNT_OR_NONE,
}
PRETRAIN: dict[str, Domain] = {f"data.mixture.{name}": MULTIPLIER for name in BASE_DATASETS}
CHAT: dict[str, Domain] = {f"data.mixture.{name}": MULTIPLIER for name in CHAT_DATASETS} | {
    "init_tokens": OneOf(("mean", "random")),
    "objective.lm": WEIGHT,
    "objective.letter": WEIGHT,
    "objective.ranking": WEIGHT,
    "data.layout": OneOf(tuple(LAYOUTS)),
    "data.cot.teacher": LINE,
    "data.cot.model": TEXT,
    "data.qa_sources": Names(),
    "data.qa_per_source": COUNT,
    "online_probe.every": COUNT_OR_NONE,
    "online_probe.questions": COUNT,
}
# What a config need not have: its evaluations, and what only models made elsewhere set.
PRETRAIN_OPTIONS: dict[str, Domain] = {"evals.recall.batch_size": Whole(1, 2**20)}
CHAT_OPTIONS: dict[str, Domain] = {
    "evals.facts.batch_size": Whole(1, 2**20),
    "evals.ctibench.batch_size": Whole(1, 2**20),
    "evals.ctibench.orders": OneOf(("cyclic", "published", "all")),
}
OPTIONS: dict[str, Domain] = {
    "model.kv_heads": Whole(0, 2**14),
    "model.head_dim": Whole(0, 2**15),
    "model.rope_base": POSITIVE,
    "model.rope_factor": POSITIVE,
    "model.rope_context": COUNT,
    "model.rope_low": POSITIVE,
    "model.rope_high": POSITIVE,
    "model.norm_eps": POSITIVE,
    "model.tied": Flag(),
}
DOMAINS = BOTH | PRETRAIN | CHAT | PRETRAIN_OPTIONS | CHAT_OPTIONS | OPTIONS


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every key; those of a base are left out, as a config of its own."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name == "base":
            continue
        if isinstance(value, ConfigDict) and name not in DOMAINS and (value or _is_group(name)):
            yield from leaves(value, f"{name}.")
        else:  # an empty group that no key is in is a key that is not known
            yield name, value


def _is_group(name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in DOMAINS)


def check(config: ConfigDict, prefix: str = "") -> None:
    """Raises UsageError where a config has a value outside of its domain, lacks a key, or has one that is not known.

    Args:
      prefix: what stands before the names of keys in messages: "base." for the base of a chat config.
    """
    found, stage = dict(leaves(config)), config.get("stage")
    if not BOTH["stage"].holds(stage):
        raise UsageError(f"{prefix}stage is {shown(stage)}; use {BOTH['stage']}.")
    needed = BOTH | (CHAT if stage == "chat" else PRETRAIN)
    known = needed | OPTIONS | (CHAT_OPTIONS if stage == "chat" else PRETRAIN_OPTIONS)
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f' Did you mean "{prefix}{near[0]}"?' if near else ""
            raise UsageError(f"A {stage} config has no key {prefix}{key}, but this one sets it.{hint}")
        if not known[key].holds(value):
            raise UsageError(f"{prefix}{key} is {shown(value)}; use {known[key]}.")
    if missing := [f"{prefix}{key}" for key in needed if key not in found]:
        raise UsageError(f"The config lacks {', '.join(missing)}. Make it with common.defaults of configs/common.py.")


def shown(value: Any) -> str:
    """Returns a value as a message has it."""
    try:
        return str(value)[:200] or "empty"
    except ValueError:  # Python's limit
        return "an integer of more than 4,300 digits"


def host_of_teacher(base_url: str, model: str) -> str:
    """Returns the host of `data.cot.teacher`, where that is no "offline".

    Raises UsageError where it is no URL or holds what may be secret, which no message repeats, and where
    `data.cot.model` is empty.
    """
    if set("@?#") & set(base_url):
        raise UsageError(
            "data.cot.teacher holds a user name, password or query, which manifests and messages would show. Give the "
            f"bare base URL, such as http://localhost:11434/v1, and a key in {KEY_VARIABLE}."
        )
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        whole = parts.scheme in ("http", "https") and host.encode("idna") and parts.port != 0
    except ValueError:
        whole = False
    if not (whole and re.fullmatch(r"[!-~]+", base_url)):
        raise UsageError(
            f'data.cot.teacher is "{base_url}", which is neither "offline" nor a base URL such as '
            "http://localhost:11434/v1."
        )
    if not model:
        raise UsageError('data.cot.teacher is a URL and data.cot.model is empty: name its model ("qwen2.5:14b").')
    return host
