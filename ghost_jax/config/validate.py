"""The domain of every config key, a row a key; `check` applies it before anything is written.

A key that is added to `configs/common.py` gets its row here. Rules between keys are in `ghost_jax.config.load`.
"""

import ctypes
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from ghost_jax.core.errors import UsageError
from ghost_jax.data.builders import DATASETS, names_of
from ghost_jax.data.sources import SOURCES
from ghost_jax.text.mcq_format import LAYOUTS
from ghost_jax.text.tokenizer import LEAST_TOKENS


@dataclasses.dataclass(frozen=True)
class Domain:
    """The values that a key may have; its text follows the word "use" in a message."""

    text: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def integer(low: int, high: int, also: int | None = None) -> Domain:
    """Returns the domain of ints from `low` to `high`, both included, and `also`."""
    text = f"a whole number from {low:,} to {high:,}"
    if also is not None:
        text = f"{also} or {text}"
    return Domain(text, lambda value: type(value) is int and (low <= value <= high or value == also))


def _is_pattern(value: Any) -> bool:
    try:
        return bool(value) and re.compile(value) is not None
    except (re.error, TypeError):
        return False


def real(high: float, above: bool = False, below: bool = False) -> Domain:
    """Returns the domain of numbers from 0 to `high`, both included unless `above` or `below` excludes one.

    Devices compute in float32: a value that float32 rounds to an excluded end or to 0 is refused.
    """

    def holds(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            rounded = ctypes.c_float(value).value
        except OverflowError:  # an int beyond float64
            return False
        if not math.isfinite(rounded) or 0 < abs(value) < SMALLEST_FLOAT32:
            return False
        return (rounded > 0 if above else value >= 0) and (rounded < high if below else value <= high)

    return Domain(f"a number in {'(' if above else '['}0, {high:g}{')' if below else ']'}", holds)


def one_of(*names: str) -> Domain:
    """Returns the domain of these names."""
    return Domain(f"one of {', '.join(name or 'nothing' for name in names)}", lambda value: value in names, names)


def several_of(*known: str) -> Domain:
    """Returns the domain of tuples of at least one name, each once, of `known` or without it of any names."""

    def holds(value: Any) -> bool:
        if not isinstance(value, tuple) or not value or len(set(value)) < len(value):
            return False
        return all(name in known if known else text(r"[^\s,()]+", "").holds(name) for name in value)

    of_known = f" of {', '.join(known)}" if known else ""
    return Domain(f"at least one name{of_known}, each once, with commas between", holds)


def text(pattern: str, words: str) -> Domain:
    """Returns the domain of printable strings of one line that match a pattern."""
    return Domain(
        words,
        lambda value: isinstance(value, str) and value.isprintable() and re.fullmatch(pattern, value) is not None,
    )


def _is_schedule(value: Any) -> bool:
    """Returns whether a value maps updates to multipliers by dataset; `load` checks which updates and datasets."""
    return isinstance(value, ConfigDict) and all(
        isinstance(changes, ConfigDict) and all(map(MULTIPLIER.holds, changes.values())) for changes in value.values()
    )


def is_path(source: str) -> bool:
    """Returns whether an entry of `data.sources` is a path, glob pattern or dataset of a user's own text."""
    name = re.sub(r"(\.(gz|xz|zip))?(#[^#]+)?$", "", source).lower()
    return "/" in source or "*" in source or source.startswith("hf:") or name.endswith(TEXT_FILES)


def _are_sources(value: Any) -> bool:
    are_distinct = isinstance(value, tuple) and 0 < len(value) == len(set(value))
    return are_distinct and all(name in SOURCES or (LINE.holds(name) and is_path(name)) for name in value)


_NAME = "a name has letters, digits and _ and is of no other dataset"


def _are_files(value: Any) -> bool:
    """Returns whether a value maps names, none of another dataset, to paths."""
    return isinstance(value, ConfigDict) and all(
        re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) and name not in (*DATASETS, "shared") and LINE.holds(path)
        for name, path in value.items()
    )


SMALLEST_FLOAT32 = 2.0**-126  # normal numbers; devices flush smaller ones to 0
LARGEST = 1e30  # of factors in float32 products
MOST = 10**9  # of counts: more than any run has, and within int32

FLAG = Domain("true or false", lambda value: isinstance(value, bool))
COUNT, COUNT_OR_NONE = integer(1, MOST), integer(0, MOST)
SEED = integer(0, 2**32 - 1)  # JAX uses a seed modulo 2^32; NumPy refuses a negative one
MULTIPLIER = real(1e6)
SCHEDULE = Domain(f'multipliers by update, such as {{"1500": {{"qa": 0.0}}}}, each {MULTIPLIER}', _is_schedule)
WEIGHT = real(LARGEST)
POSITIVE = real(LARGEST, above=True)
AXIS = integer(1, 10**6, also=-1)
PATTERN = Domain("a regular expression", _is_pattern)
TEXT = text(".{0,1000}", "printable text in one line, of at most 1,000 characters")
LINE = text(".{1,1000}", "printable text in one line, of 1 to 1,000 characters")
FOLDER = text("[^/]{1,200}", "what can be a folder's name: 1 to 200 characters and no /")

FILES = ("data.chats", "data.questions")  # groups of a user's files, which are datasets under the names given there
KEY_VARIABLE = "GHOST_TEACHER_KEY"  # the environment variable with the key of `data.cot.teacher`

TEXT_FILES = (".jsonl", ".csv", ".parquet", ".md", ".txt")  # of a user's own text, in front of a compression's suffix
BASE_DATASETS, CHAT_DATASETS = names_of("pretrain"), names_of("chat")
# Sources that documents may name; a user's own files may have others.
QA_SOURCES = ("attack", "capec", "cwe", "cve_trickest", "nvd", "kev", "exploitdb", "ctf", "embedded")
LOSSES = ("val_loss", "val_loss_shared", *(f"val_loss_{name}" for name in DATASETS))

BOTH: dict[str, Domain] = {
    "name": FOLDER,
    "preset": text("[^/]{0,200}", f"{FOLDER}, or nothing"),
    "spec": TEXT,
    "stage": one_of("pretrain", "chat"),
    "seed": SEED,
    "steps": COUNT,
    "batch_size": integer(1, 2**20),
    "micro_batch_size": integer(1, 2**20),
    "model.layers": integer(1, 2**9),
    "model.width": integer(2, 2**15),
    "model.heads": integer(1, 2**14),
    "model.mlp_dim": integer(1, 2**18),
    "model.vocab_size": integer(LEAST_TOKENS, 2**20),
    "model.context": integer(1, 2**20),
    "model.generation": one_of("v04", "v05"),
    "model.attention_bias": FLAG,
    "model.dropout": real(1, below=True),
    "model.dtype": one_of("auto", "float32", "bfloat16"),
    "model.attention": one_of("auto", "blocks", "cudnn", "splash"),
    "model.remat": FLAG,
    "model.scan": FLAG,
    "loss_norm": one_of("token_mean", "record_mean"),
    "published.run": TEXT,
    "published.steps": COUNT_OR_NONE,
    "published.rate": WEIGHT,
    "published.val_loss": WEIGHT,
    "published.accuracy": real(1),
    "published.outcome": TEXT,
    "optim.name": one_of("adamw", "muon"),
    "optim.schedule": one_of("cosine", "wsd", "constant", "linear"),
    "optim.decay_share": real(1, above=True),
    "optim.peak_lr": POSITIVE,
    "optim.min_lr": WEIGHT,
    "optim.warmup_steps": COUNT_OR_NONE,
    "optim.b1": real(1, below=True),
    "optim.b2": real(1, below=True),
    "optim.weight_decay": WEIGHT,
    "optim.clip_norm": WEIGHT,
    "data.sources": Domain(
        f"{several_of(*SOURCES)}, or paths to files of your own, with a / or ending in {', '.join(TEXT_FILES)}",
        _are_sources,
    ),
    "data.seq_len": integer(1, 2**20),
    "data.mixture_schedule": SCHEDULE,
    "data.packing": FLAG,
    "data.truncation": one_of("crop", "drop"),
    "data.validation_records": COUNT_OR_NONE,
    "data.seed": SEED,
    "mesh.replica": AXIS,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "log_every": COUNT,
    "eval_every": COUNT,
    "save_every": COUNT,
    "keep": COUNT,
    "keep_best": one_of("", *LOSSES),
    "divergence.evaluations": integer(2, MOST),
    "divergence.stop": FLAG,
    "log.wandb": text(r"[^/\\#?%:]{0,128}", "nothing or a project: at most 128 characters and none of / \\ # ? % :"),
    "log.norms": FLAG,
    "log.trace_at": COUNT_OR_NONE,
}
PRETRAIN: dict[str, Domain] = {f"data.mixture.{name}": MULTIPLIER for name in BASE_DATASETS}
CHAT: dict[str, Domain] = {f"data.mixture.{name}": MULTIPLIER for name in CHAT_DATASETS} | {
    "init_tokens": one_of("mean", "random"),
    "lora.rank": integer(0, 2**12),
    "lora.alpha": POSITIVE,
    "lora.targets": PATTERN,
    "objective.lm": WEIGHT,
    "objective.letter": WEIGHT,
    "objective.ranking": WEIGHT,
    "data.layout": one_of(*LAYOUTS),
    "data.cot.teacher": LINE,
    "data.cot.model": TEXT,
    **dict.fromkeys(FILES, Domain(f"paths by name, such as {{'mine': 'mine.jsonl'}}; {_NAME}", _are_files)),
    "data.question_group": TEXT,
    "data.qa_sources": several_of(),
    "data.qa_per_source": COUNT,
    "online_probe.every": COUNT_OR_NONE,
    "online_probe.questions": COUNT,
}
# Optional keys: evaluations, and what only imported models set.
PRETRAIN_OPTIONS: dict[str, Domain] = {"evals.recall.batch_size": integer(1, 2**20)}
CHAT_OPTIONS: dict[str, Domain] = {
    "evals.facts.batch_size": integer(1, 2**20),
    "evals.ctibench.batch_size": integer(1, 2**20),
    "evals.ctibench.orders": one_of("cyclic", "published", "all"),
}
OPTIONS: dict[str, Domain] = {
    "model.kv_heads": integer(0, 2**14),
    "model.head_dim": integer(0, 2**15),
    "model.rope_base": POSITIVE,
    "model.rope_factor": POSITIVE,
    "model.rope_context": COUNT,
    "model.rope_low": POSITIVE,
    "model.rope_high": POSITIVE,
    "model.norm_eps": POSITIVE,
    "model.tied": FLAG,
}
DOMAINS = BOTH | PRETRAIN | CHAT | PRETRAIN_OPTIONS | CHAT_OPTIONS | OPTIONS


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every key, without those of the base."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name == "base":
            continue
        is_group = isinstance(value, ConfigDict) and name not in DOMAINS
        if is_group and (value or any(key.startswith(f"{name}.") for key in DOMAINS)):
            yield from leaves(value, f"{name}.")
        else:  # an empty group without known keys counts as an unknown key
            yield name, value


def check(config: ConfigDict, prefix: str = "") -> None:
    """Raises UsageError where a config has a value outside of its domain, lacks a key, or has an unknown one."""
    found, stage = dict(leaves(config)), config.get("stage")
    if not BOTH["stage"].holds(stage):
        raise UsageError(f"{prefix}stage is {shown(stage)}; use {BOTH['stage']}.")
    needed = BOTH | (CHAT if stage == "chat" else PRETRAIN)
    known = needed | OPTIONS | (CHAT_OPTIONS if stage == "chat" else PRETRAIN_OPTIONS)
    own = [name for group in FILES for name in (found.get(group) or () if _are_files(found.get(group)) else ())]
    if twice := [name for name in own if own.count(name) > 1]:
        raise UsageError(f"{' and '.join(FILES)} both have {twice[0]}. Give each file another name.")
    known |= {f"data.mixture.{name}": MULTIPLIER for name in own}
    known |= {"keep_best": one_of("", *LOSSES, *(f"val_loss_{name}" for name in own))} if own else {}
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
    """Returns a value as messages show it."""
    try:
        return str(value)[:200] or "empty"
    except ValueError:  # Python prints no longer integer
        return "an integer of more than 4,300 digits"


def host_of_teacher(base_url: str, model: str) -> str:
    """Returns the host of a `data.cot.teacher` other than "offline".

    Raises UsageError where it is not a URL, holds what may be secret, or the model is empty.
    """
    host = host_of(base_url, "data.cot.teacher", KEY_VARIABLE, ' or "offline"')
    if not model:
        raise UsageError('data.cot.teacher is a URL and data.cot.model is empty: name its model ("qwen2.5:14b").')
    return host


def host_of(base_url: str, setting: str, key_variable: str, otherwise: str = "") -> str:
    """Returns the host of an API's base URL, the value of `setting`.

    Raises UsageError where it is not a URL, or holds what may be secret (no message repeats it); `key_variable` is
    where a key belongs, and `otherwise` names another value that the setting may have.
    """
    if set("@?#") & set(base_url):
        raise UsageError(
            f"{setting} holds a user name, password or query, which records and messages would show. Give the "
            f"bare base URL, such as http://localhost:11434/v1, and a key in {key_variable}."
        )
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        valid = parts.scheme in ("http", "https") and host.encode("idna") and parts.port != 0
    except ValueError:
        valid = False
    if not (valid and re.fullmatch(r"[!-~]+", base_url)):
        raise UsageError(f'{setting} is "{base_url}". Give a base URL such as http://localhost:11434/v1{otherwise}.')
    return host
