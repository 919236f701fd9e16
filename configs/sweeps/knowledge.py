"""What a model knows, read three ways: chat_facts with three seeds of its chat stage on one base, and its control.

    python -m ghost_jax.sweep --config=configs/sweeps/knowledge.py:mini          # or :nano

The base of `unread` makes as many updates on the pages of CAPEC, CWE and the pack alone, without the 26 wordings of
each fact. What is right there comes from the pages, from names that fit each other, and from the chat stage.
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

PAGES = {"base.name": "pretrain_pages", "base.data.mixture.facts": 0.0}


def get_sweep(preset=""):
    spec = at_preset("configs/chat_facts.py", preset)
    return Sweep([Setting("knowledge", spec), Setting("unread", spec, PAGES)])
