"""Which rate? chat_v5 at 1 to 20 times the study's 5e-5, three seeds each.

    python -m ghost_jax.sweep --config=configs/sweeps/lr.py          # or :mini, :nano

The small presets multiply every rate as they multiply chat_v5's own.
"""

from configs import chat_v5
from ghost_jax.sweeps.grid import Sweep, at_preset, grid

RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)


def get_sweep(preset=""):
    scale = chat_v5.get_config(preset).optim.peak_lr / chat_v5.get_config().optim.peak_lr
    rates = [float(f"{scale * rate:.3g}") for rate in RATES]
    return Sweep(grid(at_preset("configs/chat_v5.py", preset), {"optim.peak_lr": rates}), axis="optim.peak_lr")
