"""Which code a record of a benchmark is of."""

from collections.abc import Mapping

KEYS = ("ghost_jax", "git_commit", "git_dirty")


def code_of(environment: Mapping) -> dict:
    """Returns what of an environment, as `run_dir.environment` gives it, tells the code apart."""
    return {key: environment[key] for key in KEYS}


def in_words(code: Mapping | None) -> str:
    """Returns the code of a record for a sentence. None is of a record that does not say."""
    if code is None:
        return "code that the record does not name"
    commit = f" at {code['git_commit'][:7]}" if code["git_commit"] else ", installed as a package"
    return f"ghost_jax {code['ghost_jax']}{commit}{' with uncommitted changes' if code['git_dirty'] else ''}"
