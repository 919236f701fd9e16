"""What a model knows, read three ways: chat_facts with three seeds of its chat stage on one base.

python -m ghost_jax.sweep --config=configs/sweeps/knowledge.py:mini          # or :nano
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset


def get_sweep(preset=""):
    return Sweep([Setting("knowledge", at_preset("configs/chat_facts.py", preset))])
