"""What does size buy? chat_v5 at every size up to the preset's, three seeds each.

    python -m ghost_jax.sweep --config=configs/sweeps/size.py          # nano, mini and full; or :mini, :nano

Each size has its own base, number of updates and rate: a size is the recipe at that preset, not the width alone.
"""

from configs import common
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset


def get_sweep(preset=""):
    sizes = [*common.PRESETS, "full"]
    up_to = sizes[: sizes.index(common.scale_of(preset)) + 1]
    return Sweep([Setting(size, at_preset("configs/chat_v5.py", size.replace("full", ""))) for size in up_to])
