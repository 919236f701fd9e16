"""`EVALUATIONS` are those that a config may name in `evals`; docs/extending.md#an-evaluation says what each module has.

`TASKS` are CTIBench's tasks with answers in free text, see `open_answers.py`.
"""

from types import ModuleType

from evals.tasks import facts, mcq, reading, recall
from evals.tasks.ate import ATE
from evals.tasks.open_answers import Task
from evals.tasks.rcm import RCM
from evals.tasks.vsp import VSP

EVALUATIONS: dict[str, ModuleType] = {
    "ctibench": mcq,
    "facts": facts,
    "reading": reading,
    "recall": recall,
}
TASKS: dict[str, Task] = {task.name: task for task in (RCM, VSP, ATE)}
