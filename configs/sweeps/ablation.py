"""The study's eight recipes in one table, one seed each, as the study had them.

    python -m ghost_jax.sweep --config=configs/sweeps/ablation.py:nano

chat_v2, chat_v3 and chat_v4_raft have the v0.4 base, the others v0.5; each base is trained once.
"""

from configs import common
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

RECIPES = (
    *("chat_v2", "chat_v3", "chat_v4_raft", "chat_v05"),
    *("chat_long", "chat_recovered", "chat_v4_failed", "chat_v5"),
)


def get_sweep(preset=""):
    common.scale_of(preset)  # refuses an unknown one
    return Sweep([Setting(name, at_preset(f"configs/{name}.py", preset)) for name in RECIPES], seeds=(0,))
