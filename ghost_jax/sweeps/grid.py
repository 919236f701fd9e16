"""What a sweep runs: settings by seeds. A sweep file defines `get_sweep(preset="") -> Sweep`."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from ghost_jax.config import files as config_files
from ghost_jax.config.keys import FOLDER, LOSSES
from ghost_jax.core.errors import UsageError

Value = bool | int | float | str
METRICS = (*LOSSES, "loss", "loss_lm", "loss_letter", "loss_ranking")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the sweep's table: a config, as after `--config=`, and its overrides."""

    name: str
    spec: str
    overrides: Mapping[str, Value] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A setting with a seed; `name` is that of its run directory."""

    name: str
    setting: Setting
    seed: int

    @property
    def overrides(self) -> dict[str, str]:
        """Config key -> text, as on the command line."""
        return {key: str(value) for key, value in {**self.setting.overrides, "seed": self.seed}.items()}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep file."""

    settings: Sequence[Setting]  # the rows of its table, in their order
    seeds: Sequence[int] = (0, 1, 2)  # each setting is run with each; the seeds of a setting are pooled
    axis: str = ""  # the config key whose value is the plot's x axis; "" draws the settings by name
    # names in metrics.jsonl that are tabulated and drawn beside the accuracy, in nats a token
    metrics: Sequence[str] = ("val_loss", "val_loss_shared")
    name: str = ""  # filled in from the command line

    def runs(self) -> list[Run]:
        """Returns every setting with every seed, all settings with the first seed first."""
        return [Run(f"{setting.name}-seed{seed}", setting, seed) for seed in self.seeds for setting in self.settings]


def grid(spec: str, axes: Mapping[str, Sequence[Value]]) -> list[Setting]:
    """Returns a setting of `spec` for every combination of the values of config keys, the last key changing fastest.

    A setting is named after the last parts of its keys: "mcq=5,cot=2".
    """
    settings = []
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in overrides.items())
        settings.append(Setting(name, spec, overrides))
    return settings


def at_preset(path: str, preset: str) -> str:
    """Returns a config file with its preset, as after `--config=`."""
    return f"{path}:{preset}" if preset else path


def load(spec: str) -> Sweep:
    """Returns the sweep of `path[:preset]`. Raises UsageError where it is absent or faulty.

    The configs that its settings name are looked up in the folders above the sweep file as well.
    """
    path, preset = config_files.find("sweep", spec)
    sweep = config_files.read("sweep", path, preset)
    if fault := _fault(sweep):
        raise UsageError(f"{path} cannot be run: {fault}.")
    settings = []
    for setting in sweep.settings:
        config, of_config = config_files.find("config", setting.spec, *path.absolute().parents)
        settings.append(dataclasses.replace(setting, spec=at_preset(str(config), of_config)))
    return dataclasses.replace(sweep, settings=settings, name=f"{path.stem}-{preset or 'full'}")


def _fault(sweep: object) -> str:
    """Returns what is wrong with the result of a sweep file, "" for nothing. Its configs are checked one by one."""
    if not isinstance(sweep, Sweep) or not sweep.settings or not sweep.seeds:
        return "its get_sweep(preset) must return a Sweep with at least one setting and one seed"
    for setting in sweep.settings:
        if not FOLDER.holds(setting.name):
            return f'the name of the setting "{setting.name}" must be {FOLDER}'
        if sweep.axis and sweep.axis not in setting.overrides:
            return f"its axis is {sweep.axis}, which the setting {setting.name} does not set"
    if unknown := [name for name in sweep.metrics if name not in METRICS]:
        return f"its metrics name {unknown[0]}; use some of {', '.join(METRICS)}"
    names = [run.name for run in sweep.runs()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return f"it names {', '.join(twice)} twice: give every setting a name and each seed once"
    return ""
