"""The evaluations that a config may name in `evals`, with options of their own; `EVALUATIONS` is the table.

Each is a module with

    check_data(workdir, data_dir)          raises UserError where the data of a run hold what it will be asked
    evaluate_run(predict, tokenizer, workdir, data_dir, *, context, **options) -> record
                                           of `evals/NAME.json`, see `ghost_jax.runs.evaluation`
    show_run(workdir, console)             prints that

`TASKS` is the table of CTIBench's tasks with answers in free text, see `open_answers.py`.
"""

from types import ModuleType

from evals.tasks import facts, mcq, recall
from evals.tasks.ate import ATE
from evals.tasks.open_answers import Task
from evals.tasks.rcm import RCM
from evals.tasks.vsp import VSP

EVALUATIONS: dict[str, ModuleType] = {"ctibench": mcq, "facts": facts, "recall": recall}
TASKS: dict[str, Task] = {task.name: task for task in (RCM, VSP, ATE)}
