"""What repetition buys: the recall of facts stated 10 to 1,000 times, each fact in turn by each number.

    python -m ghost_jax.sweep --config=configs/sweeps/exposure.py:nano          # or :mini

At nano the settings rotate which facts are stated how often (`pretrain_exposure.py`), so that over all five every fact
has been stated every number of times. Larger presets train one base, of 200 facts for each number.
"""

from configs import common
from ghost_jax.data.builders.exposure import COUNTS
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset


def get_sweep(preset=""):
    spec = at_preset("configs/pretrain_exposure.py", preset)
    turns = len(COUNTS) if common.scale_of(preset) == "nano" else 1
    rotations = [Setting(f"rotation{turn}", spec, {"data.seed": turn}) for turn in range(turns)]
    return Sweep(rotations, seeds=(0,), metrics=("val_loss",))
