"""What a report is made of: the records of runs and those of no run, read and checked.

What cannot be read is named and left out, so that one broken file does not hide the others.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import check_version, read_json
from ghost_jax.core.errors import UserError
from ghost_jax.runs import metrics

OF_A_CONFIG = {"stage", "model", "data", "optim", "steps"}  # what every version wrote
OF_A_SCORE = {"items", "headline", "verdict", "baselines", "book"}


def find_runs(folder: Path) -> list[Path]:
    """Returns the run directories at or below `folder`, by name. Raises UserError where there is none."""
    configs = [*folder.glob("config.json"), *folder.glob("*/config.json")]
    runs = sorted(path.parent for path in configs if not _is_exported(path))
    if not runs:
        raise UserError(
            f"There is no run in {folder}. Train one: python -m ghost_jax.train --config=configs/chat_v5.py:nano."
        )
    return runs


def _is_exported(path: Path) -> bool:
    """Returns whether a config.json is a model's that was exported into the same folder, and no run's."""
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and "architectures" in found and "stage" not in found


def read_run(workdir: Path) -> dict:
    """Returns a run's records: config, environment, data, metrics lines, how it ended, scores by name.

    What is absent is empty: a run that is neither finished nor stopped by the watch is unfinished. A file in `evals/`
    that is no score, such as a comparison, is not among the scores.

    Raises UserError where a file is broken, or the config is none of a run.
    """

    def read(name: str) -> dict:
        path = workdir / name
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no record of a run. Repeat the command that made the run.")
        return found

    config = read("config.json")
    check_version(config, workdir / "config.json")
    if (workdir / "config.json").is_file() and (missing := OF_A_CONFIG - config.keys()):
        raise UserError(
            f"{workdir / 'config.json'} is the config of no run: it lacks {', '.join(sorted(missing))}. Repeat the "
            "command that made the run."
        )
    scores = {path.stem: read(f"evals/{path.name}") for path in sorted((workdir / "evals").glob("*.json"))}
    return {
        "name": workdir.name,
        "config": config,
        "environment": read("environment.json"),
        "data": read("data.json"),
        "finished": (workdir / "status.json").is_file(),
        "stopped": read("stopped.json"),
        "metrics": metrics.read(workdir),
        "evals": {name: score for name, score in scores.items() if score.keys() >= OF_A_SCORE},
    }


def read_runs(workdirs: Iterable[Path]) -> tuple[list[dict], list[str]]:
    """Returns the records of the runs that can be read, and a sentence on each that cannot.

    Raises UserError, the first of those sentences, where none can.
    """
    runs, left_out = [], []
    for workdir in workdirs:
        try:
            runs.append(read_run(workdir))
        except UserError as fault:
            left_out.append(str(fault))
    if not runs:
        raise UserError(left_out[0])
    return runs, left_out


def read_beside(paths: Sequence[Path]) -> tuple[dict[Path, dict], list[str]]:
    """Returns the JSON records of no run that can be read, by their files, and a sentence on each that cannot."""
    records, left_out = {}, []
    for path in paths:
        try:
            found = read_json(path)
        except UserError as fault:
            left_out.append(str(fault))
            continue
        if isinstance(found, dict):
            records[path] = found
    return records, left_out
