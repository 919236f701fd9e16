"""Every key of a config, a row a key: its default, the values that it may have, and its meaning.

A recipe changes only what it is about. `ghost_jax.config.load` checks values before anything is written, and the
rules between keys.
"""

import ctypes
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ghost_jax.data.builders import DATASETS, names_of
from ghost_jax.data.sources import SOURCES
from ghost_jax.model.config import SIZES
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
    except (re.error, TypeError, OverflowError, RecursionError):
        return False


def real(high: float, above: bool = False, below: bool = False) -> Domain:
    """Returns the domain of numbers from 0 to `high`, both included unless `above` or `below` excludes one.

    Devices compute in float32: a value that float32 rounds to an excluded end or to 0 is refused.
    """

    def holds(value: Any) -> bool:
        if type(value) not in (int, float) or not 0 <= value <= high or 0 < value < SMALLEST_FLOAT32:
            return False
        rounded = ctypes.c_float(value).value
        return (rounded > 0 or not above) and (rounded < high or not below)

    return Domain(f"a number in {'(' if above else '['}0, {high:g}{')' if below else ']'}", holds)


def one_of(*names: str) -> Domain:
    """Returns the domain of these names."""
    return Domain(f"one of {', '.join(name or 'nothing' for name in names)}", lambda value: value in names, names)


def _are_names(value: Any) -> bool:
    """Returns whether a value is a tuple of at least one string, each once."""
    is_of_strings = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return is_of_strings and 0 < len(value) == len(set(value))


def several_of(*known: str) -> Domain:
    """Returns the domain of tuples of at least one name, each once, of `known` or without it of any names."""
    fits = known.__contains__ if known else text(r"[^\s,()]+", "").holds

    def holds(value: Any) -> bool:
        return _are_names(value) and all(map(fits, value))

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
    return _are_names(value) and all(name in SOURCES or (LINE.holds(name) and is_path(name)) for name in value)


def _are_files(value: Any) -> bool:
    """Returns whether a value maps names, none of another dataset, to paths."""
    fits = text("[A-Za-z][A-Za-z0-9_]{0,63}", "").holds
    return isinstance(value, ConfigDict) and all(
        fits(name) and name not in (*DATASETS, "shared") and LINE.holds(path) for name, path in value.items()
    )


SMALLEST_FLOAT32 = 2.0**-126  # normal numbers; devices flush smaller ones to 0
LARGEST = 1e30  # of factors in float32 products
MOST = 10**9  # of counts: more than any run has, and within int32

FLAG = Domain("true or false", lambda value: isinstance(value, bool))
COUNT, COUNT_OR_NONE = integer(1, MOST), integer(0, MOST)
SEED = integer(0, 2**32 - 1)  # JAX uses a seed modulo 2^32; NumPy refuses a negative one
MULTIPLIER = real(1e6)
SCHEDULE = Domain(f'multipliers by update, such as {{"1500": {{"qa": 0.0}}}}, each {MULTIPLIER}', _is_schedule)
_NAMED = "a name has letters, digits and _ and is of no other dataset"
PATHS = Domain(f"paths by name, such as {{'mine': 'mine.jsonl'}}; {_NAMED}", _are_files)
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

# The shape of a model; the defaults are those of a named size.
MODEL: dict[str, Domain] = {
    "model.layers": integer(1, 2**9),
    "model.width": integer(2, 2**15),
    "model.heads": integer(1, 2**14),
    "model.mlp_dim": integer(1, 2**18),
    "model.vocab_size": integer(LEAST_TOKENS, 2**20),
    "model.context": integer(1, 2**20),
    "model.generation": one_of("v04", "v05"),
    "model.attention_bias": FLAG,
    "model.dropout": real(1, below=True),
    "model.remat": FLAG,
    "model.scan": FLAG,
}
Key = tuple[Any, Domain]  # the default, and the values that are allowed
BOTH: dict[str, Key] = {
    # name, preset, spec: filled in from the command line
    "name": ("", FOLDER),
    "preset": ("", text("[^/]{0,200}", f"{FOLDER}, or nothing")),
    "spec": ("", TEXT),
    "stage": ("", one_of("pretrain", "chat")),
    "seed": (0, SEED),  # parameters, order of the data, dropout
    "steps": (1000, COUNT),  # updates
    "batch_size": (32, integer(1, 2**20)),  # global: sequences an update, over all devices and micro-batches
    # most sequences a device computes at once; must divide its share of batch_size
    "micro_batch_size": (8, integer(1, 2**20)),
    # of activations and of products' factors; auto is the faster here
    "model.dtype": ("auto", one_of("auto", "float32", "bfloat16")),
    # auto: the platform's kernel where it can be used
    "model.attention": ("auto", one_of("auto", "blocks", "cudnn", "splash")),
    # what a batch's loss is a mean over: supervised tokens, or records
    "loss_norm": ("token_mean", one_of("token_mean", "record_mean")),
    # published: the row of the study's table that the config rebuilds; 0 where it gives no figure
    "published.run": ("", TEXT),
    "published.steps": (0, COUNT_OR_NONE),
    "published.rate": (0.0, WEIGHT),
    "published.val_loss": (0.0, WEIGHT),
    "published.accuracy": (0.0, real(1)),
    "published.outcome": ("", TEXT),
    # muon: Muon for matrices of blocks, AdamW for the rest; both take the same rates
    "optim.name": ("adamw", one_of("adamw", "muon")),
    "optim.schedule": ("cosine", one_of("cosine", "wsd", "constant", "linear")),  # all after a linear warm-up
    "optim.decay_share": (0.2, real(1, above=True)),  # of all updates, in which "wsd" decays
    "optim.peak_lr": (3e-4, POSITIVE),
    "optim.min_lr": (1e-5, WEIGHT),  # absolute, reached at the last update
    "optim.warmup_steps": (100, COUNT_OR_NONE),
    "optim.b1": (0.9, real(1, below=True)),
    "optim.b2": (0.95, real(1, below=True)),
    "optim.weight_decay": (0.1, WEIGHT),  # on matrices only
    "optim.clip_norm": (1.0, WEIGHT),  # 0: gradients are not clipped
    "data.sources": (
        ("attack", "capec", "cwe", "embedded"),
        Domain(
            f"{several_of(*SOURCES)}, or paths to files of your own, with a / or ending in {', '.join(TEXT_FILES)}",
            _are_sources,
        ),
    ),
    "data.seq_len": (512, integer(1, 2**20)),  # tokens a row
    "data.mixture_schedule": ({}, SCHEDULE),  # "1500": {"qa": 0.0}: multipliers after update 1500
    "data.packing": (False, FLAG),  # several conversations in a row, none seeing another
    # of a conversation longer than a row: crop cuts its beginning off, drop leaves it out
    "data.truncation": ("crop", one_of("crop", "drop")),
    "data.validation_records": (100_000, COUNT_OR_NONE),  # most records of a dataset in its validation loss
    "data.seed": (0, SEED),  # which facts are asked; apart from `seed`, so that seeds share their data
    # -1: the devices that are left; as `replica`, copies of the model over the network, the number of TPU slices
    "mesh.replica": (-1, AXIS),
    "mesh.data": (-1, AXIS),
    "mesh.fsdp": (1, AXIS),
    "mesh.tensor": (1, AXIS),
    "log_every": (10, COUNT),  # updates between lines of metrics.jsonl
    "eval_every": (100, COUNT),  # updates between validation losses
    "save_every": (100, COUNT),  # updates between checkpoints
    "keep": (2, COUNT),  # checkpoints kept
    # after so many evaluations in a row, each with a higher loss, the run stops or warns
    "divergence.evaluations": (3, integer(2, MOST)),
    "divergence.stop": (False, FLAG),
    "log.wandb": (
        "",
        text(r"[^/\\#?%:]{0,128}", "nothing or a project: up to 128 characters, none of / \\ # ? % :"),
    ),
    "log.trace_at": (0, COUNT_OR_NONE),  # the update to profile
}
# data.mixture: dataset -> multiplier = record repetition
PRETRAIN: dict[str, Key] = {f"data.mixture.{name}": (float(name == "pretrain"), MULTIPLIER) for name in BASE_DATASETS}
CHAT: dict[str, Key] = {f"data.mixture.{name}": (0.0, MULTIPLIER) for name in CHAT_DATASETS} | {
    # name -> path: files of conversations, and of multiple-choice questions, a part of which is held out; datasets of
    # the mixture under these names
    **{group: ({}, PATHS) for group in FILES},
    "data.question_group": ("", TEXT),  # their column or key whose values are never on both sides; "": url, options
    # lora: with rank 0 every parameter is trained. Else only adapters to the kernels in whose names `targets` is found,
    # and the rows of the new tokens.
    "lora.rank": (0, integer(0, 2**12)),
    "lora.alpha": (16.0, POSITIVE),
    "lora.targets": ("kernel", PATTERN),
    # how the new rows of the embedding start: as the mean of the old ones or at random
    "init_tokens": ("mean", one_of("mean", "random")),
    # weights of the objectives: next-token loss of supervised tokens, cross-entropy over the option letters, softmax
    # over the log-probabilities of the options' texts (of the datasets "rank", "fact_rank" and "read")
    "objective.lm": (1.0, WEIGHT),
    "objective.letter": (0.0, WEIGHT),
    "objective.ranking": (0.0, WEIGHT),
    "data.packing": (True, FLAG),
    "data.layout": ("classic", one_of(*LAYOUTS)),  # of multiple choice; names in ghost_jax/text/mcq_format.py
    # cot: or an OpenAI-compatible URL and its model
    "data.cot.teacher": ("offline", LINE),
    "data.cot.model": ("", TEXT),
    "data.qa_sources": (QA_SOURCES, several_of()),  # as documents name them; absent ones are skipped
    "data.qa_per_source": (3500, COUNT),  # about how many documents, and how many facts, of a source become questions
    # online_probe: letters of some of the run's held-out questions while it trains, every so many updates; 0: never
    "online_probe.every": (0, COUNT_OR_NONE),
    "online_probe.questions": (64, COUNT),
}
STAGES = {"pretrain": PRETRAIN, "chat": CHAT}
# Optional keys: evaluations, and what only imported models set.
PRETRAIN_OPTIONS: dict[str, Domain] = {"evals.recall.batch_size": integer(1, 2**20)}
CHAT_OPTIONS: dict[str, Domain] = {
    "evals.facts.batch_size": integer(1, 2**20),
    "evals.reading.batch_size": integer(1, 2**20),
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


def domains_of(stage: str) -> dict[str, Domain]:
    """Returns the domain of every key that a config of a stage must have."""
    return {key: domain for key, (_, domain) in (BOTH | STAGES[stage]).items()} | MODEL


DOMAINS = domains_of("pretrain") | domains_of("chat") | PRETRAIN_OPTIONS | CHAT_OPTIONS | OPTIONS


def defaults(stage: str, size: str) -> ConfigDict:
    """Returns a complete config of stage "pretrain" or "chat" for a named model size."""
    values = {f"model.{key}": value for key, value in SIZES[size].record().items()}
    values |= {key: value for key, (value, _) in (BOTH | STAGES[stage]).items()} | {"stage": stage}
    if stage == "chat":
        values |= {"evals.ctibench.batch_size": 16, "evals.ctibench.orders": "cyclic"}
    nested: dict[str, Any] = {"evals": {}}  # evaluation of evals/tasks -> its options, run at the end
    for key, value in values.items():
        node = nested
        *groups, name = key.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return ConfigDict(nested)
