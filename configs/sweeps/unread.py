"""What would chat_facts score without the facts? The control of knowledge.py: its base reads the pages alone.

    python -m ghost_jax.sweep --config=configs/sweeps/unread.py:mini          # or :nano

The base makes as many updates on the pages of CAPEC and CWE, which state each fact about once; the 26 wordings of each
fact are left out. What is right here comes from the pages, from names that fit each other, and from the chat stage.
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

PAGES = {"base.name": "pretrain_pages", "base.data.mixture.facts": 0.0}


def get_sweep(preset=""):
    return Sweep([Setting("unread", at_preset("configs/chat_facts.py", preset), PAGES)])
