"""What makes a model answer one letter: eight cells of objective, layout and questions, on the base of chat_facts.

    python -m ghost_jax.sweep --config=configs/sweeps/latch.py:mini          # or :nano

Each cell tunes on one set of multiple-choice questions, beside the same questions and answers and small talk: the
study's (`mcq`) or those that no letter, length, popularity or whole shared word answers (`fact_mcq`). `lm` is the
language-model loss alone, `letter` adds the cross-entropy over the letters, `ranking` compares the options' texts in
place of letters. The first row is chat_facts itself, which mixes them.
"""

from configs.sweeps import knowledge
from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

MCQ = ("mcq", "fact_mcq", "rank", "fact_rank")
CELLS = {  # name -> objectives, layout, questions and their multiplier
    "lm-classic-study": (("lm",), "classic", "mcq", 5.0),
    "lm-classic-facts": (("lm",), "classic", "fact_mcq", 1.0),
    "lm-letter_after-facts": (("lm",), "letter_after", "fact_mcq", 1.0),
    "lm-cloze-facts": (("lm",), "cloze", "fact_mcq", 4.0),
    "letter-classic-study": (("lm", "letter"), "classic", "mcq", 5.0),
    "letter-classic-facts": (("lm", "letter"), "classic", "fact_mcq", 1.0),
    "letter-letter_after-facts": (("lm", "letter"), "letter_after", "fact_mcq", 1.0),
    "ranking-cloze-facts": (("lm", "ranking"), "cloze", "fact_rank", 4.0),
}


def get_sweep(preset=""):
    spec = at_preset("configs/chat_facts.py", preset)
    settings = [knowledge.get_sweep(preset).settings[0]]
    for name, (objectives, layout, questions, multiplier) in CELLS.items():
        changes = {f"objective.{each}": float(each in objectives) for each in ("lm", "letter", "ranking")}
        changes |= {f"data.mixture.{each}": multiplier if each == questions else 0.0 for each in MCQ}
        settings.append(Setting(name, spec, changes | {"data.layout": layout}))
    return Sweep(settings)
