"""What does reading buy? Held-out fact questions closed book and behind random, found and oracle passages.

    python -m ghost_jax.sweep --config=configs/sweeps/reader.py          # or :mini, :nano

Two readers start from the base of chat_reader and make the same number of updates. `ranking` is chat_reader, which
ranks options; `raft` has the study's RAFT mixture and answers by letter.
"""

from configs import common
from configs.sweeps.recipes import NANO_BASE
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

RAFT = {
    "data.layout": "classic",
    "data.mixture.read": 0.0,
    "data.mixture.raft": 5.0,
    "data.mixture.qa": 1.0,
    "objective.lm": 1.0,
    "objective.ranking": 0.0,
}


def get_sweep(preset=""):
    scale = common.scale_of(preset)
    spec = at_preset("configs/chat_reader.py", preset)
    shared = {"steps": 3000 if scale == "full" else 600}
    if scale == "nano":
        shared |= {**NANO_BASE, "optim.warmup_steps": 20, "log_every": 10, "data.validation_records": 128}
        shared |= {"eval_every": 100, "save_every": 100}
    return Sweep([Setting("ranking", spec, shared), Setting("raft", spec, shared | RAFT)])
