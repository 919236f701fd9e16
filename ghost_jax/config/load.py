"""A config file and a command line become one locked, checked ConfigDict.

`--config=configs/chat_v5.py:nano` calls that file's `get_config("nano")`; `--config.optim.peak_lr=1e-4` then changes
one value. An unknown key is an error that names the nearest one, and a value keeps its type.
"""

import argparse
import ast
import dataclasses
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ghost_jax.config import files as config_files
from ghost_jax.config import keys
from ghost_jax.config.keys import DOMAINS, FILES
from ghost_jax.core.addresses import host_of
from ghost_jax.core.atomic_io import read_config
from ghost_jax.core.errors import UsageError, did_you_mean
from ghost_jax.core.object_store import path_of
from ghost_jax.data.builders import DATASETS
from ghost_jax.model.config import LATER, ModelConfig

# Keys that do not decide what a run computes, or what its base computed. They may change when it is resumed;
# keep_best is of older runs.
FREE_KEYS = {
    *("name", "preset", "spec", "published", "log_every", "log", "online_probe", "keep", "keep_best", "evals"),
    *("mesh", "micro_batch_size", "save_every", "model.attention", "model.remat"),
    *("base", "base.model.dtype", "vocabulary"),  # a base's own directory has its type; the path of its vocabulary
}
MIXTURE = "data.mixture."  # the group in which a dataset with 0 is as one that is absent
# Fields of its model that a chat config sets itself. All others are those of its base.
OWN = ("dropout", "dtype", "remat", "scan", "attention")

LETTERED = tuple(name for name, row in DATASETS.items() if row.lettered)
RANKED = tuple(name for name, row in DATASETS.items() if row.ranked)
SHARED = tuple(name for name, row in DATASETS.items() if row.shared)  # built for every chat recipe, mixed in or not


# ---- Files and command lines ----


def load(spec: str) -> ConfigDict:
    """Returns the locked config of `path[:preset,…]`. Raises UsageError where there is no such file or preset."""
    path, preset = config_files.find("config", spec)
    config = config_files.read("config", path, preset)
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path} is no config file: its get_config returns no ConfigDict.")
    with config.unlocked():
        config.name, config.preset, config.spec = path.stem, preset, config_files.recorded(path, preset)
        _mix_in_own(config)
    return config.lock()


def _mix_in_own(config: ConfigDict) -> None:
    """Gives each dataset of `FILES` the multiplier 1 where the mixture of an unlocked config has none."""
    groups = [group for key, group in leaves(config) if key in FILES and DOMAINS[key].holds(group)]
    if isinstance(config.data.get("mixture"), ConfigDict):
        new = {name: 1.0 for group in groups for name in group}
        config.data.mixture = new | config.data.mixture.to_dict()


def override_all(config: ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets keys from their texts: first `FILES`, whose names the mixture gets. Raises UsageError as `override`."""
    own = [each for each in overrides if each[0].rpartition(".")[0] in FILES]
    for (key, path), (other, second) in itertools.combinations(own, 2):
        if key == other:
            raise UsageError(f"--config.{key} names both {path} and {second}. Give each file another name.")
    for key, text in sorted(overrides, key=lambda each: each not in own):
        override(config, key, text)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` ("optim.peak_lr") from its text. Raises UsageError for an unknown key or a value of another type."""
    node, parts = config, key.split(".")
    if (group := key.rpartition(".")[0]) in FILES and group in dict(leaves(config)):
        with config.unlocked():
            config.data[parts[1]][parts[-1]] = text
            _mix_in_own(config)
        return
    for part in parts:
        if not isinstance(node, ConfigDict) or part not in node:
            raise UsageError(f"The config has no key {key}.{_nearest_key(config, key)}")
        parent, node = node, node[part]
    if isinstance(node, ConfigDict):
        keys = f"set one of {', '.join(f'{key}.{k}' for k in node)}" if node else "set it in a config file"
        keys = f"give each file a name: --config.{key}.NAME=PATH" if key in FILES else keys
        raise UsageError(f"--config.{key} is a group; {keys}.")
    try:
        parent[parts[-1]] = _parse(text, node)
    except (ValueError, TypeError, KeyError, OverflowError, SyntaxError, RecursionError, MemoryError):
        domain = DOMAINS.get(key.removeprefix("base."))
        raise UsageError(
            f"--config.{key}={text[:200]} does not fit: the value is a {type(node).__name__}, by default {node!r}."
            + (f" Use {domain}." if domain else "")
        ) from None


def _nearest_key(config: ConfigDict, key: str) -> str:
    """Returns a hint at the nearest key, or at one whose group was forgotten."""
    names = [name for name, _ in leaves(config)] + [f"base.{name}" for name, _ in leaves(config.get("base", {}))]
    ends = {name.rpartition(".")[2]: name for name in reversed(names)}  # of equal ends, the key of the run itself
    near = difflib.get_close_matches(key, names, n=1)
    near = near or [ends[end] for end in difflib.get_close_matches(key.rpartition(".")[2], ends, n=1)]
    return f' Did you mean "{near[0]}"?' if near else f" Known: {', '.join(sorted(config))}."


def _parse(text: str, default: Any) -> Any:
    """Returns the value of a text in the type of the default; raises one of many exceptions where it has another."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        inner = text[1:-1] if text[:1] == "(" and text[-1:] == ")" else text  # a path may hold parentheses
        return tuple(part.strip() for part in inner.split(",") if part.strip())
    value = ast.literal_eval(text)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or not math.isfinite(value):
        raise ValueError(text)
    return value


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[ConfigDict, argparse.Namespace]:
    """Returns the config and the other flags of a command line; adds the flags of a config to `parser`."""
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:PRESET]", help="config file, e.g. configs/chat_v5.py:nano")
    add("--base", type=path_of, metavar="DIR", help="the finished base run, ours or imported, of a chat config")
    add("--data_dir", type=path_of, metavar="DIR", help="folder of raw/, corpus/, ctibench/ (default: $GHOST_DATA)")
    parser.epilog = "Any value of the config can be set by --config.KEY=VALUE or --config.KEY VALUE."
    overrides, words = overrides_in(argv)
    flags = parser.parse_args(words)
    config = load(flags.config)
    if flags.base:
        stand_on(config, flags.base)
        if of_base := [f"--config.{key}" for key, _ in overrides if key.startswith("base.")]:
            raise UsageError(f"--base={flags.base} is trained already. Leave out {', '.join(of_base)}.")
    override_all(config, overrides)
    validate(config)
    return config, flags


def overrides_in(argv: Sequence[str], prefix: str = "--config.") -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the key and the text of each `--config.KEY=VALUE` and `--config.KEY VALUE`, and all other words.

    Raises UsageError for a key without a value. A value that begins with a dash and is not a number needs the `=`.
    """
    overrides, others, words = [], [], iter(argv)
    for word in words:
        if not word.startswith(prefix):
            others.append(word)
            continue
        key, equals, text = word.removeprefix(prefix).partition("=")
        if not equals:
            text = next(words, "--")
            if re.match(r"-[^0-9.]", text):  # another flag
                raise UsageError(f"{word} has no value: write {word}=VALUE.")
        overrides.append((key, text))
    return overrides, others


def stand_on(config: ConfigDict, base: Path) -> None:
    """Makes a chat config start from the base run in a directory, trained here or imported, instead of its own.

    Its model gets the base's shape. Raises UserError where there is no such run.
    """
    if not (base / "config.json").is_file():
        raise UsageError(f"--base={base} holds no run. Name the directory of a trained or imported base run.")
    found = read_config(base / "config.json")
    if config.stage != "chat" or found["stage"] == "chat":
        raise UsageError(f"--base={base} must be a base run, and {config.spec} a chat config, which starts from one.")
    own = {key: config.model[key] for key in OWN}
    with config.unlocked():
        config.base = ConfigDict(found | {"vocabulary": str(base.resolve() / "tokenizer.json")})
        config.model = ConfigDict(found["model"] | own)


# ---- Checks: the keys of a stage, each in its domain (`ghost_jax.config.keys`) ----


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
    if not DOMAINS["stage"].holds(stage):
        raise UsageError(f"{prefix}stage is {str(stage)[:200]}; use {DOMAINS['stage']}.")
    needed = keys.domains_of(stage)
    known = needed | keys.OPTIONS | (keys.CHAT_OPTIONS if stage == "chat" else keys.PRETRAIN_OPTIONS)
    own = [name for group in FILES if DOMAINS[group].holds(found.get(group)) for name in found[group]]
    if twice := [name for name in own if own.count(name) > 1]:
        raise UsageError(f"{' and '.join(FILES)} both have {twice[0]}. Give each file another name.")
    known |= {f"data.mixture.{name}": keys.MULTIPLIER for name in own}
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f' Did you mean "{prefix}{near[0]}"?' if near else ""
            raise UsageError(f"A {stage} config has no key {prefix}{key}, but this one sets it.{hint}")
        if not known[key].holds(value):
            raise UsageError(f"{prefix}{key} is {str(value)[:200] or 'empty'}; use {known[key]}.")
    asked = tuple(f"evals.{name}." for name in config.get("evals", ()))
    needed = [*needed, *(key for key in known if key.startswith(asked))]
    if missing := [f"{prefix}{key}" for key in needed if key not in found]:
        raise UsageError(f"The config lacks {', '.join(missing)}. Make it with common.defaults of configs/common.py.")


# ---- Rules between keys: each yields what is wrong, beginning with the name of a key; the first fault is raised ----


def validate(config: ConfigDict, prefix: str = "") -> None:
    """Raises UsageError where a value is outside of its domain or contradicts another.

    Messages put `prefix` before a key: "base." for the base of a chat config.
    """
    check(config, prefix)
    for rule in (_model_and_optimizer, _mixture, _measurements, _objective):
        for fault in rule(config):
            raise UsageError(f"{prefix}{fault}")
    if config.stage != "chat":
        return
    if config.data.cot.teacher != "offline":
        host_of(config.data.cot.teacher, "data.cot.teacher", keys.KEY_VARIABLE, ' or "offline"')
        if not config.data.cot.model:
            raise UsageError('data.cot.teacher is a URL and data.cot.model is empty: name its model ("qwen2.5:14b").')
    if not isinstance(config.get("base"), ConfigDict):
        raise UsageError("A chat config needs a base, and this one has none. Use chat_on of configs/common.py.")
    if "vocabulary" not in config.base:  # else a finished run, which was validated before
        validate(config.base, "base.")
    own, of_base = (ModelConfig(**model) for model in (config.model, config.base.model))
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in OWN]
    if unlike := [f"model.{name}" for name in names if getattr(own, name) != getattr(of_base, name)]:
        raise UsageError(
            f"The chat model and its base differ in {', '.join(unlike)}: a chat run starts from the base's weights. "
            "Set both, e.g. --config.model.width and --config.base.model.width."
        )


def _model_and_optimizer(config: ConfigDict) -> Iterator[str]:
    model, optim, heads = config.model, config.optim, config.model.heads
    if config.data.seq_len > model.context:
        yield f"data.seq_len ({config.data.seq_len}) is longer than model.context ({model.context})."
    # RoPE rotates pairs of a head's dimensions.
    if model.head_dim % 2 if model.get("head_dim") else model.width % (2 * heads):
        yield f"model.heads ({heads}) must divide model.width ({model.width}) into parts of an even size."
    if heads % (model.get("kv_heads") or heads):
        yield f"model.kv_heads ({model.kv_heads}) must divide model.heads ({heads})."
    size = ModelConfig(**model)
    if size.rope_low >= size.rope_high:
        yield f"model.rope_low ({size.rope_low:g}) must be below model.rope_high ({size.rope_high:g})."
    of_v05 = size.record().keys() & {*LATER} - {"attention", "norm_eps"}  # set, and not to the default
    if model.generation == "v04" and of_v05:
        yield f"model.{min(of_v05)} is for model.generation=v05 alone; v04 has GPT-2's shape. Leave it out."
    if [config.mesh[axis] for axis in ("data", "fsdp", "tensor")].count(-1) > 1:
        yield f"mesh has -1, the devices that are left, more than once: {dict(config.mesh)}. Set one size."
    if optim.schedule != "constant" and optim.min_lr > optim.peak_lr:
        what = f"optim.min_lr is {optim.min_lr}, but the rate decays to it from optim.peak_lr ({optim.peak_lr})."
        yield f"{what} Use at most that."
    if config.get("lora", {}).get("rank") and optim.name == "muon":
        yield "optim.name is muon, which has no axes for adapters. With lora.rank use adamw."


def _mixture(config: ConfigDict) -> Iterator[str]:
    for start, changes in config.data.mixture_schedule.items():
        if not re.fullmatch(r"[1-9][0-9]{0,9}", str(start)) or int(start) >= config.steps:
            yield f"data.mixture_schedule has the key {start}; it must be an update between 1 and steps - 1."
        for name in changes:
            if name not in config.data.mixture:
                yield f"data.mixture_schedule.{start} names {name}.{did_you_mean(name, list(config.data.mixture))}"
    for start, multipliers in mixtures(config).items():
        if max(multipliers.values()) <= 0:
            yield f"data.mixture after update {start} is empty: give a --config.data.mixture.NAME above 0."


def _measurements(config: ConfigDict) -> Iterator[str]:
    """Yields updates that the run does not reach."""
    probe_every = config.online_probe.every if config.stage == "chat" else 0
    for key, update in (("log.trace_at", config.log.trace_at), ("online_probe.every", probe_every)):
        if update > config.steps:
            yield f"{key} is {update}, but the last update is {config.steps}. Use at most that, or 0 for never."


def _objective(config: ConfigDict) -> Iterator[str]:
    if config.stage != "chat":
        return
    weights = config.objective
    if max(weights.values()) <= 0:
        yield "objective is empty: give one of --config.objective.lm, .letter, .ranking above 0."
    if weights.letter and config.data.layout == "cloze":
        yield "objective.letter needs letters, and data.layout=cloze has none. Use objective.ranking."
    for name, datasets in (("letter", (*LETTERED, *config.data.questions)), ("ranking", RANKED)):
        if weights[name] and not mixed(config).intersection(datasets):
            yield f"objective.{name} needs one of {', '.join(datasets)}: set a --config.data.mixture.NAME above 0."


# ---- What a config means ----


def mixtures(config: ConfigDict) -> dict[int, dict[str, float]]:
    """Returns first update -> multiplier of each dataset: `data.mixture`, changed by `data.mixture_schedule`."""
    multipliers = {name: float(value) for name, value in config.data.mixture.items()}
    by_start = {0: multipliers}
    for start, changes in sorted(config.data.mixture_schedule.items(), key=lambda item: int(item[0])):
        multipliers = multipliers | {name: float(value) for name, value in changes.items()}
        by_start[int(start)] = multipliers
    return by_start


def mixed(config: ConfigDict) -> set[str]:
    """Returns the datasets that are mixed in at any update."""
    return {name for multipliers in mixtures(config).values() for name in multipliers if multipliers[name]}


def decisive(config: Mapping, prefix: str = "") -> dict:
    """Returns a config without `FREE_KEYS` and datasets that are not mixed in; `prefix` is its group."""
    return {
        key: decisive(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{prefix}{key}" not in FREE_KEYS and (value or not prefix.endswith(MIXTURE))
    }


def recipe_of(config: Mapping) -> dict:
    """Returns what decides what a run and its base compute, except for the seeds, from the JSON of its config."""
    kept = decisive(config)
    kept.pop("seed", None)
    return kept | ({"base": recipe_of(config["base"])} if "base" in config else {})


def to_json(config: ConfigDict) -> str:
    """Returns the resolved config as the JSON that a run directory keeps."""
    kept = config.to_dict()
    kept.get("base", {}).pop("vocabulary", None)  # of --base: a path of the user's, and records are published
    return json.dumps(kept, indent=1, sort_keys=True)
