"""What does each dataset do? chat_v5 with the study's multipliers of raw MCQ, CoT and small talk, three seeds each.

    python -m ghost_jax.sweep --config=configs/sweeps/mixture.py          # or :mini, :nano

Every combination is run, so that what one dataset does is seen with and without the others.
"""

from ghost_jax.sweeps.grid import Sweep, at_preset, grid


def get_sweep(preset=""):
    multipliers = {
        "data.mixture.mcq": (0, 1, 5),
        "data.mixture.cot": (0, 2),
        "data.mixture.small_talk": (8, 30),
    }
    return Sweep(grid(at_preset("configs/chat_v5.py", preset), multipliers))
