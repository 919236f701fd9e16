"""What makes the letters follow: chat_letters, and as many updates on the letters of facts alone.

    python -m ghost_jax.sweep --config=configs/sweeps/letters.py:mini          # or :nano

The second setting is the control: what letters reach without questions that quote their answer.
"""

from configs import chat_letters
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset


def get_sweep(preset=""):
    c = chat_letters.get_config(preset)
    alike = {
        "steps": c.steps,
        "optim.warmup_steps": c.optim.warmup_steps,
        "eval_every": c.eval_every,
        "save_every": c.save_every,
        "data.mixture.qa": c.data.mixture.qa,
        "data.mixture.fact_rank": 0.0,
        "data.mixture.small_talk": 0.0,
        "objective.letter": 1.0,
        "objective.ranking": 0.0,
    }
    matching = Setting("matching", at_preset("configs/chat_letters.py", preset))
    return Sweep([matching, Setting("facts", at_preset("configs/chat_facts.py", preset), alike)])
