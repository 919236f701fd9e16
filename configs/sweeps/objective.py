"""What should be learnt of a question? The language-model loss alone, with the letters' and with the ranking's.

    python -m ghost_jax.sweep --config=configs/sweeps/objective.py          # or :mini, :nano

The ranking needs the dataset `rank`. All three mix it in, so that they see the same records.
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset


def get_sweep(preset=""):
    weights = {
        "lm": {"objective.letter": 0.0, "objective.ranking": 0.0},
        "lm+letter": {"objective.letter": 1.0, "objective.ranking": 0.0},
        "lm+ranking": {"objective.letter": 0.0, "objective.ranking": 1.0},
    }
    spec = at_preset("configs/chat_v5.py", preset)
    return Sweep([Setting(name, spec, {"data.mixture.rank": 5.0, **values}) for name, values in weights.items()])
