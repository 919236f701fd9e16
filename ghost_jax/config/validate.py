"""Checks of a config: that it has the keys of its stage, each in its domain (`ghost_jax.config.keys`); and of URLs."""

import difflib
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from ghost_jax.config import keys
from ghost_jax.config.keys import DOMAINS, FILES
from ghost_jax.core.errors import UsageError


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
    if missing := [f"{prefix}{key}" for key in needed if key not in found]:
        raise UsageError(f"The config lacks {', '.join(missing)}. Make it with common.defaults of configs/common.py.")


def host_of_teacher(base_url: str, model: str) -> str:
    """Returns the host of a `data.cot.teacher` other than "offline".

    Raises UsageError where it is not a URL, holds what may be secret, or the model is empty.
    """
    host = host_of(base_url, "data.cot.teacher", keys.KEY_VARIABLE, ' or "offline"')
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
