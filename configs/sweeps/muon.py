"""AdamW or Muon? pretrain_v05 at nano and mini on 5 million tokens, three seeds each.

    python -m ghost_jax.sweep --config=configs/sweeps/muon.py          # both sizes; or :mini, :nano

Both optimizers use the preset's rate, a warm-up of a twentieth of the updates, and the cosine. The loss of all
validation records is measured after each twentieth; `curves.png` draws it against tokens and against training time.
Untested: whether AdamW's rate is also the best one for Muon.
"""

from configs import common, pretrain_v05
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

TOKENS = 5_000_000  # of each run


def get_sweep(preset=""):
    size = common.scale_of(preset)
    sizes = common.PRESETS if size == "full" else (size,)
    return Sweep([_setting(size, name) for size in sizes for name in ("adamw", "muon")], metrics=("val_loss",))


def _setting(size, optimizer):
    c = pretrain_v05.get_config(size)
    steps = round(TOKENS / (c.batch_size * c.data.seq_len))
    changes = {
        "optim.name": optimizer,
        "steps": steps,
        "optim.warmup_steps": steps // 20,
        "eval_every": steps // 20,
        "save_every": steps // 4,
        "log_every": max(1, steps // 200),
        "data.validation_records": 100_000,  # all of them
    }
    return Setting(f"{size}-{optimizer}", at_preset("configs/pretrain_v05.py", size), changes)
