"""What makes the letters follow: chat_facts by letters, behind questions that quote their answer.

    python -m ghost_jax.train --config=configs/chat_letters.py          # or :mini, :nano

For 1,000 updates it asks which letter a quoted phrase has (`matching_mcq`), then facts by letter as well. A model of
6.9M parameters learns the first in about 900 updates; 500 updates of questions on facts alone did not teach it.
Untested: other sizes; more seeds than one; a lower rate, or more of `qa`, which would keep more of the facts.
"""

from configs import chat_facts

FIRST = 1000  # updates before the facts


def get_config(preset=""):
    c = chat_facts.get_config(preset)
    c.steps = 2200
    c.optim.warmup_steps = 50
    c.data.mixture.update(matching_mcq=1.0, qa=0.25, fact_mcq=0.0, fact_rank=0.0, small_talk=0.0)
    c.data.mixture_schedule = {str(FIRST): {"matching_mcq": 0.25, "fact_mcq": 1.0}}
    c.objective.update(letter=1.0, ranking=0.0)
    c.eval_every, c.save_every = 250, 500
    return c
