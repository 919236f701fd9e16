"""Does it matter how new tokens start? chat_v5 with the mean of the old rows and at random, three seeds each.

python -m ghost_jax.sweep --config=configs/sweeps/init.py          # or :mini, :nano
"""

from ghost_jax.sweeps.grid import Sweep, at_preset, grid


def get_sweep(preset=""):
    return Sweep(grid(at_preset("configs/chat_v5.py", preset), {"init_tokens": ("mean", "random")}))
