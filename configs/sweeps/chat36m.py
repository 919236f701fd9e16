"""The study's last recipe at its full size (36M parameters), in hours on two cores: chat_v5 after 10M base tokens.

    python -m ghost_jax.sweep --config=configs/sweeps/chat36m.py          # or :nano, to try it

The study's base made 60,000 updates. This one makes 2,442 of 4,096 tokens; 300 chat updates follow. The rates are
higher than the study's, as in the small presets. One seed. As chat_v5 it reads `cti` and `cve` (docs/commands.md).
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

SHORT = {
    "base.batch_size": 4,
    "base.micro_batch_size": 4,
    "base.steps": 2442,
    "base.optim.peak_lr": 1e-3,
    "base.optim.warmup_steps": 100,
    "base.eval_every": 200,
    "base.save_every": 200,
    "steps": 300,
    "optim.peak_lr": 5e-4,
    "optim.warmup_steps": 20,
    "eval_every": 50,
    "save_every": 50,
    "log_every": 10,
}


def get_sweep(preset=""):
    return Sweep([Setting("chat_v5", at_preset("configs/chat_v5.py", preset), SHORT)], seeds=(0,))
