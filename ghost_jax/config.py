"""A config file and a command line become one locked, checked ConfigDict.

`--config=configs/chat_v5.py:nano` calls that file's `get_config("nano")`; `--config.optim.peak_lr=1e-4` then changes
one value. A key that does not exist is an error with the nearest one named, and a value keeps the type it had.
"""

import argparse
import ast
import difflib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from ghost_jax.errors import UsageError, UserError, did_you_mean
from ghost_jax.text.multiple_choice import LAYOUTS
from ghost_jax.whole import read_json

# What says how a run is shown, kept and looked at, and not what it computes: it may change in its continuation.
FREE_KEYS = {
    *("name", "preset", "spec", "published", "log_every", "log", "look", "keep", "keep_best", "evals", "mesh", "base"),
}


def load(spec: str) -> ConfigDict:
    """Returns the locked config of `path[:preset,…]`. Raises UsageError where there is no such file or preset."""
    path_text, _, preset = spec.partition(":")
    path = Path(path_text).resolve()
    if not path.is_file():
        raise UsageError(
            f"There is no config file {path_text}. Run from the repository's root and name one of configs/, for "
            "example --config=configs/chat_v5.py:nano."
        )
    root = str(path.parent.parent)  # a config imports its neighbours as `configs.…`, wherever the command is run from
    if root not in sys.path:
        sys.path.insert(0, root)
    module_spec = importlib.util.spec_from_file_location(f"ghost_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(preset)
    except UserError:
        raise
    except AttributeError as fault:
        raise UsageError(f"{path_text} is no config file: {fault}. It must define get_config(preset).") from None
    except Exception as fault:
        raise UsageError(f"{path_text} could not be read: {type(fault).__name__}: {fault}.") from None
    config.name = path.stem
    config.preset = preset
    config.spec = spec
    return config.lock()


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` ("optim.peak_lr") from its text. Raises UsageError for an unknown key or a value of another type."""
    node, parts = config, key.split(".")
    for part in parts:
        if not isinstance(node, ConfigDict) or part not in node:
            raise UsageError(f"The config has no key {key}.{_nearest_key(config, key)}")
        parent, node = node, node[part]
    if isinstance(node, ConfigDict):
        raise UsageError(f"--config.{key} is a group; set one of {', '.join(f'{key}.{k}' for k in node)}.")
    try:
        parent[parts[-1]] = _parse(text, node)
    except (ValueError, TypeError, OverflowError, SyntaxError, RecursionError, MemoryError):  # of endless brackets, too
        raise UsageError(
            f"--config.{key}={text[:200]} does not fit: the value is a {type(node).__name__}, by default {node!r}."
        ) from None


def _nearest_key(config: ConfigDict, key: str) -> str:
    """Names the key meant: the one whose last part is nearest, in the group that was named if it is there."""
    leaves = sorted(_leaves(config), key=lambda name: name.count("."), reverse=True)  # the shallowest of a name wins
    group, _, last = key.rpartition(".")
    here = {name.rpartition(".")[2]: name for name in leaves if name.rpartition(".")[0] == group}
    anywhere = {name.rpartition(".")[2]: name for name in leaves}
    for known in (here, anywhere):
        near = difflib.get_close_matches(last, list(known), n=1)
        if near:
            return f' Did you mean "{known[near[0]]}"?'
    return f" Known: {', '.join(sorted(here.values()) or sorted(config))}."


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return (
            {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            if text.lower() in ("true", "false", "1", "0")
            else _refuse(text)
        )
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.strip("()").split(",") if part.strip())
    value = ast.literal_eval(text)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):  # 1e999; JSON has no such number
        _refuse(text)
    return value if type(value) is type(default) else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[ConfigDict, argparse.Namespace]:
    """Returns the config and the other flags of a command line; adds `--config` and `--data_dir` to `parser`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:PRESET]", help="config file, e.g. configs/chat_v5.py:nano"
    )
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="of a chat config: start from this finished base run, ours or imported"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="folder with raw/, corpus/, ctibench/ (default: $GHOST_DATA)")
    parser.epilog = "Any value of the config can be set by --config.KEY=VALUE, e.g. --config.optim.peak_lr=1e-4."
    overrides = [word for word in argv if word.startswith("--config.")]
    flags = parser.parse_args([word for word in argv if word not in overrides])
    config = load(flags.config)
    if flags.base:
        stand_on(config, flags.base)
    for word in overrides:
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UsageError(f"{word} has no value: write {word}=VALUE.")
        override(config, key, text)
    validate(config)
    return config, flags


def stand_on(config: ConfigDict, base: Path) -> None:
    """Makes a chat config start from the base run in a directory, trained here or imported, and not from its own.

    Its model takes that one's shape, and its vocabulary is that one's, grown. Raises UserError where there is none.
    """
    found = read_json(base / "config.json")
    if config.stage != "chat" or found["stage"] == "chat":
        raise UsageError(f"--base={base} must be a base run, and {config.spec} a chat config, which starts from one.")
    own = {key: config.model[key] for key in ("dropout", "dtype", "remat", "scan")}
    with config.unlocked():
        config.base = ConfigDict(found | {"vocabulary": str(base.resolve() / "tokenizer.json")})
        config.model = ConfigDict(found["model"] | own)


def validate(config: ConfigDict) -> None:
    """Raises UsageError where the values of a config contradict each other."""
    micro, batch = config.micro_batch_size, config.batch_size
    if batch < 1 or micro < 1 or batch % micro:
        raise UsageError(f"batch_size ({batch}) must be a multiple of micro_batch_size ({micro}), both at least 1.")
    for key in ("steps", "log_every", "eval_every", "save_every", "keep"):
        if config[key] < 1:
            raise UsageError(f"{key} is {config[key]}; it must be at least 1.")
    if config.data.seq_len < 1:
        raise UsageError(f"data.seq_len is {config.data.seq_len}; a row needs at least one token.")
    if config.data.seq_len > config.model.context:
        raise UsageError(f"data.seq_len ({config.data.seq_len}) is longer than model.context ({config.model.context}).")
    _validate_choices(config)
    for start, multipliers in _mixtures_of(config).items():
        if max(multipliers.values()) <= 0 or min(multipliers.values()) < 0:
            raise UsageError(
                f"The mixture from update {start} on is empty or negative: give a --config.data.mixture.NAME above 0."
            )
    for key in ("layers", "width", "heads", "hidden", "vocab_size", "context"):
        if config.model[key] < 1:
            raise UsageError(f"model.{key} is {config.model[key]}; it must be at least 1.")
    width, heads = config.model.width, config.model.heads
    # Rotary positions turn pairs of a head's dimensions.
    if config.model.head_dim % 2 if config.model.get("head_dim") else width % (2 * heads):
        raise UsageError(f"model.heads ({heads}) must cut model.width ({width}) into parts of an even size.")
    if config.stage == "chat":
        if "vocabulary" not in config.base:  # else it is there already
            validate(config.base)
        shape = ("layers", "width", "heads", "hidden", "vocab_size", "context", "generation", "attention_bias")
        unlike = [key for key in shape if config.model[key] != config.base.model[key]]
        if unlike:
            raise UsageError(
                f"The chat model and its base differ in {', '.join(f'model.{key}' for key in unlike)}: a chat run "
                "starts from the base's weights. Set both, e.g. --config.model.width and --config.base.model.width."
            )


LETTERED = ("mcq", "cot", "fact_mcq", "raft")  # datasets whose answers begin with a letter
RANKED = ("rank", "read")  # datasets whose options are ranked
# key -> its values; the names that rooms further on give a meaning to
CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.generation": ("v04", "v05"),
    "optim.schedule": ("cosine", "wsd", "constant", "linear"),
    "loss_norm": ("token_mean", "record_mean"),
    "data.overlong": ("crop", "drop"),
    "data.layout": tuple(LAYOUTS),
    "init_tokens": ("mean", "random"),
}


def _validate_choices(config: ConfigDict) -> None:
    for key, values in CHOICES.items():
        group, _, name = key.rpartition(".")
        held = config[group] if group else config
        if name in held and held[name] not in values:
            raise UsageError(f"{key} is {held[name]}; use one of {', '.join(values)}.")
    if config.watch.evaluations < 2:
        raise UsageError(f"watch.evaluations is {config.watch.evaluations}; a rise takes at least 2 evaluations.")
    if config.stage == "chat":
        if min(config.objective.values()) < 0 or max(config.objective.values()) <= 0:
            raise UsageError(
                "The objective is empty or negative: give one of --config.objective.lm, .letter, .ranking."
            )
        if config.objective.letter and config.data.layout == "cloze":
            raise UsageError(
                "objective.letter needs letters, and data.layout=cloze has none. Use objective.ranking, or another "
                "layout."
            )
        if config.objective.letter and not any(config.data.mixture[name] for name in LETTERED):
            raise UsageError(
                f"objective.letter needs a dataset with letters: give a --config.data.mixture.NAME, one of "
                f"{', '.join(LETTERED)}, above 0."
            )
        if config.objective.ranking and not any(config.data.mixture[name] for name in RANKED):
            raise UsageError(
                f"objective.ranking ranks the options of the datasets {' and '.join(RANKED)}, none of which is mixed "
                "in: set --config.data.mixture.rank=1 as well."
            )


def _mixtures_of(config: ConfigDict) -> dict[int, dict[str, float]]:
    for start, changes in config.data.later.items():
        if not str(start).isdecimal() or not 0 < int(start) < config.steps:
            raise UsageError(f"data.later has the key {start}; it must be an update between 1 and steps.")
        for name in changes:
            if name not in config.data.mixture:
                raise UsageError(f"data.later.{start} names {name}.{did_you_mean(name, list(config.data.mixture))}")
    return mixtures(config)


def mixtures(config: ConfigDict) -> dict[int, dict[str, float]]:
    """Returns first update -> multiplier of each dataset: `data.mixture` from 0 on, changed by `data.later`."""
    multipliers = {name: float(value) for name, value in config.data.mixture.items()}
    by_start = {0: multipliers}
    for start, changes in sorted(config.data.later.items(), key=lambda item: int(item[0])):
        multipliers = multipliers | {name: float(value) for name, value in changes.items()}
        by_start[int(start)] = multipliers
    return by_start


def recipe_of(config: Mapping) -> dict:
    """Returns of a run's config, read from its JSON, what decides what it computes, but for the seed; so of its base.

    It is equal for the seeds of one recipe.
    """
    kept = {key: value for key, value in config.items() if key not in FREE_KEYS | {"seed"}}
    return kept | ({"base": recipe_of(config["base"])} if "base" in config else {})


def to_json(config: ConfigDict) -> str:
    """Returns the resolved config as the JSON that a run directory keeps."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def from_json(text: str) -> FrozenConfigDict:
    """Returns the config of a run directory; the inverse of `to_json` up to tuples."""
    return FrozenConfigDict(json.loads(text))
