"""The study's eight recipes on trained bases, three seeds each; at small presets with a fifth of the study's updates.

    python -m ghost_jax.sweep --config=configs/sweeps/recipes.py          # or :mini, :nano

The bases are those of the recipes' presets: 33M tokens at mini, and 12M at nano, where the preset's own are too short
for anything to be learnt. `chat_v5-random` starts new tokens at random and not at the mean of the others.
"""

import importlib

from configs import common
from configs.sweeps.ablation import RECIPES
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

NANO_BASE = {
    "base.steps": 6000,
    "base.optim.warmup_steps": 200,
    "base.eval_every": 1000,
    "base.save_every": 1000,
    "base.log_every": 50,
}


def get_sweep(preset=""):
    scale = common.scale_of(preset)
    share = 1 if scale == "full" else 5
    settings = []
    for name in RECIPES:
        full = importlib.import_module(f"configs.{name}").get_config("")
        overrides = {
            "steps": full.steps // share,
            "optim.warmup_steps": full.optim.warmup_steps // share,
            "eval_every": 100,
            "save_every": 100,
            "log_every": 10,
            "data.validation_records": 128,
            **(NANO_BASE if scale == "nano" else {}),
        }
        if full.divergence.stop:  # which needs losses over all of them
            overrides["data.validation_records"] = 100_000
        settings.append(Setting(name, at_preset(f"configs/{name}.py", preset), overrides))
    random = {**settings[-1].overrides, "init_tokens": "random"}
    return Sweep([*settings, Setting("chat_v5-random", at_preset("configs/chat_v5.py", preset), random)])
