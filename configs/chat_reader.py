"""The model that reads: it ranks the options of a question behind the passages that a search found for it.

    python -m ghost_jax.train --config=configs/chat_reader.py          # or :mini, :nano
    python -m evals.ctibench --workdir=runs/chat_reader-full --book=open --reader=both

What it does, and why:

- Retrieval belongs to the question and not to the weights: passages stand in its prompts when it is trained and when
  it is asked, found by the same search. As in RAFT, some do not tell: 70% of the prompts hold the oracle among the
  passages, 20% have it replaced, 10% have none.
- No letters. The options are not shown; each is a way to go on behind the prompt, and the loss is the cross-entropy of
  the gold one among their log-probabilities a token. What is trained is what is asked, and there is no letter
  to collapse to; since long options are not the less likely for it, the loss begins near chance and not far above it.
- fact_mcq's questions: each option is right in one question of its four, so that only reading tells them apart.
- Q&A beside it at a tenth of the objective, so that it still answers in a chat.

The lexical reader finds the line; this is to tell which option the line speaks for where the words differ. What it adds
is a paired difference, printed by the second command.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    c = common.chat_on(pretrain_v05, preset, steps=3000, peak_lr=1e-4, read=1.0, qa=0.2)
    c.data.layout = "cloze"
    c.data.truncation = "drop"  # a question that loses options cannot be ranked
    c.objective.lm, c.objective.ranking = 0.1, 1.0
    return c
