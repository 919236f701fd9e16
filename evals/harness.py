"""EleutherAI's lm-evaluation-harness on a run: `python -m evals.harness --workdir=runs/NAME --tasks=arc_easy,piqa`.

The harness knows thousands of tasks and asks three things of a model, all in strings: how probable a text is behind
another, how probable it is alone, and what follows it. `TextModel` answers them with the readers that our own
evaluations use; the harness's own class is a thin cover over it. The package lm_eval is optional.

A task there asks each question in one order of its options. Whether a model has collapsed to one letter, only
`evals.ctibench` tells.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from evals.answering.harness_options import generation_of
from evals.answering.prefix_tree import Branch, Tree, read, shared_beginning
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UsageError, UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.inference.generate import Generator
from ghost_jax.inference.sampling import Sampling
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs.cropping import cropping
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import make_predict

LM_EVAL = "lm_eval==0.4.13"
BATCH_SIZE = 16  # rows a forward pass
Request = tuple[str, Sequence[str], int, Sampling]  # context, stop strings, most new tokens, how they are chosen


class Rendered(str):
    """A chat prompt as the harness hands it around: a string that spells the role tokens, with their ids beside it.

    The string alone could not be turned back into ids: a question may spell a role token too, and must not become one.

    Attributes:
      ids: [T] int32, what the renderer made of the turns, up to the assistant's role token.
      begun: what the assistant's turn already says: text still, because it may share a token with what follows.
    """

    ids: np.ndarray
    begun: str


def rendered(tokenizer: Tokenizer, turns: Sequence[Mapping[str, str]], begun: str = "") -> Rendered:
    """Returns the prompt behind which the assistant speaks, or goes on from what it has `begun` to say.

    Args:
      turns: each with a "role" and a "content", which may be None. Our conversations have no system role: what a
        "system" says stands in front of the user's first turn, a blank line between, or is that turn.

    Raises UserError where the vocabulary is that of a base model.
    """
    if not tokenizer.has_roles:
        raise UserError(
            "The run is a base model without a chat format. Leave --apply_chat_template away, or score a chat run made "
            "from it."
        )
    system = [turn["content"].rstrip() for turn in turns if turn["role"] == "system" and turn["content"]]
    messages = [Message(turn["role"], turn["content"] or "") for turn in turns if turn["role"] != "system"]
    if system:
        asked = messages.pop(0).content if messages and messages[0].role == "user" else ""
        messages.insert(0, Message("user", "\n\n".join(filter(None, [*system, asked]))))
    ids = render_prompt(tokenizer, messages)
    prompt = Rendered(tokenizer.decode(ids) + begun)
    prompt.ids, prompt.begun = ids, begun
    return prompt


class TextModel:
    """A run, asked in strings. Plain text begins with BOS, as every document did that a base has learnt from.

    Attributes:
      prompts: how many were read so far.
      cropped: how many of them were longer than the model's context and lost their beginning.
    """

    def __init__(self, config: ModelConfig, params: dict, mesh: Mesh, tokenizer: Tokenizer):
        self._config, self._params, self._mesh, self._tokenizer = config, params, mesh, tokenizer
        self._predict = functools.partial(make_predict(config, params, mesh), params)
        self._generators: dict[int, Generator] = {}  # by the most tokens that each generates
        self.prompts = self.cropped = 0

    def loglikelihood(self, requests: Iterable[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns for each `(context, continuation)` the continuation's log-probability, and whether it is greedy.

        It is greedy where each of its tokens is the most probable one. A context may be empty, or `Rendered`.

        Raises UserError for a continuation without text, or one longer than the model's context.
        """
        return self._read([self._parted(*request) for request in requests])

    def loglikelihood_rolling(self, texts: Iterable[str]) -> list[float]:
        """Returns the log-probability of each text; one longer than the model's context is read in windows."""
        windows = [list(windows_of(self._ids(text), self._config.context)) for text in texts]
        found = iter(self._read([window for of_text in windows for window in of_text]))
        return [sum(next(found)[0] for _ in of_text) for of_text in windows]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Returns the text that follows each context, up to where the first of its stop strings begins.

        A prompt that leaves no room for its new tokens loses its beginning, down to half of the model's context. What
        is drawn depends on a request and its number alone.
        """
        texts = [""] * len(requests)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(len(requests)))
        for new_tokens, sampling in dict.fromkeys(request[2:] for request in requests if request[2]):
            rows = [row for row, request in enumerate(requests) if request[2:] == (new_tokens, sampling)]
            room = max(self._config.context - new_tokens, self._config.context // 2)
            prompts = [self._ids(requests[row][0]) for row in rows]
            self.prompts += len(prompts)
            self.cropped += sum(len(prompt) > room for prompt in prompts)
            generate = self._generator(new_tokens)
            generated = generate([prompt[-room:] for prompt in prompts], sampling, keys[np.array(rows)])
            for row, ids in zip(rows, generated, strict=True):
                texts[row] = before_any(self._tokenizer.decode(ids), requests[row][1])
        return texts

    def _opened(self, context: str) -> tuple[np.ndarray, str]:
        """Returns the ids of a context that stand, and its text behind them, whose ids may change with what follows."""
        if isinstance(context, Rendered):
            return context.ids, context.begun
        return np.array([self._tokenizer.bos_id], np.int32), context

    def _behind(self, ids: np.ndarray, text: str) -> np.ndarray:
        return np.concatenate([ids, np.array(self._tokenizer.encode(text), np.int32)])

    def _ids(self, context: str) -> np.ndarray:
        return self._behind(*self._opened(context))

    def _parted(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of a context and of what follows it, as they are where the two are one text.

        A word's token begins with the blank in front of it, so "is " and "Paris" encoded apart would be ids that the
        model has hardly seen in a row. Therefore the blanks that end the context go to the continuation, both are
        encoded together, and what the context does not begin with is predicted. The harness's own models part a text
        so too; a token that lies on both sides they leave out, and here it counts.
        """
        ids, text = self._opened(context)
        whole = self._behind(ids, text + continuation)
        shared = len(shared_beginning([self._behind(ids, text.rstrip()), whole]))
        if shared == len(whole):
            raise UserError(
                f"A task asks how probable an empty text is, behind a prompt that ends in {context[-60:]!r}. Give "
                "every choice of that question a text, or leave the question out."
            )
        return whole[:shared], whole[shared:]

    def _read(self, parted: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation behind its context, and whether it is greedy.

        Contexts that are equal are one trunk. Each prompt is cropped by itself, so that no score depends on what else
        is asked.
        """
        context = self._config.context
        self.prompts += len(parted)
        asked: dict[bytes, tuple[np.ndarray, list[int], list[Branch]]] = {}
        for row, (before, predicted) in enumerate(parted):
            if len(predicted) > context:
                raise UserError(
                    f"A task asks how probable a text of {len(predicted):,} tokens is, and the model's context is "
                    f"{context:,}. It begins {self._tokenizer.decode(predicted)[:60]!r}. Leave that question out, or "
                    "score a run with a larger model.context."
                )
            whole = np.concatenate([before, predicted])
            self.cropped += len(whole) > context + 1  # the last token is predicted and not read
            trunk, rest = np.split(whole[-(context + 1) :], [-(len(predicted) + 1)])
            _, rows, branches = asked.setdefault(trunk.tobytes(), (trunk, [], []))
            rows.append(row)
            branches.append(Branch(rest[:-1], np.arange(len(predicted)), predicted[:, None]))
        trees = [Tree(trunk, tuple(branches)) for trunk, _, branches in asked.values()]
        readings = read(self._predict, trees, context=context, batch_size=BATCH_SIZE, doing="reading")
        answers = [(0.0, False)] * len(parted)
        for (_, rows, _), of_tree in zip(asked.values(), readings, strict=True):
            for row, found in zip(rows, of_tree, strict=True):
                total = float(found.log_probs.sum(dtype=np.float64))
                answers[row] = total, bool(found.most_probable[:, 0].all())
        return answers

    def _generator(self, new_tokens: int) -> Generator:
        if new_tokens not in self._generators:
            self._generators[new_tokens] = Generator(
                self._config,
                self._params,
                self._mesh,
                batch_size=BATCH_SIZE,
                new_tokens=new_tokens,
                stop_ids=self._tokenizer.end_ids,
            )
        return self._generators[new_tokens]


def windows_of(ids: np.ndarray, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pieces `(before, predicted)` of ids [T], so that each id but the first is predicted once.

    At most `context` ids are read for a piece. The last one predicts fewer and has more before them.
    """
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        yield ids[max(0, end - 1 - context) : start], ids[start:end]


def before_any(text: str, stops: Sequence[str]) -> str:
    """Returns the text up to where the first of the stop strings begins; an empty one stops nothing."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


# ---- The harness ----


def prepare() -> None:
    """Imports lm_eval as this process needs it. Raises UserError, which says how to install it, where it is missing."""
    if os.environ.get("GHOST_OFFLINE") == "1":
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # bootstraps would fork a process that has JAX's threads
    try:
        import lm_eval.evaluator
        import lm_eval.tasks  # noqa: F401
    except ImportError as fault:
        raise UserError(
            f"The tasks are those of the package lm_eval, which cannot be imported ({fault}). Install it with "
            f"`{sys.executable} -m pip install {LM_EVAL}`."
        ) from None


@functools.cache
def adapter() -> type:
    """Returns `GhostJax(workdir)`, a language model of the harness, which knows it as "ghost_jax" from then on."""
    prepare()
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    @register_model("ghost_jax")
    class GhostJax(LM):
        """A run as the harness asks it; see `TextModel`."""

        def __init__(self, workdir: str | Path):
            super().__init__()
            mesh = make_mesh()
            config, params, self._step = load_model(Path(workdir), mesh)
            self._workdir = workdir
            self._tokenizer = tokenizer_lib.load(Path(workdir) / "tokenizer.json")
            self._model = TextModel(config, params, mesh, self._tokenizer)

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            return self._model.loglikelihood(request.args for request in requests)

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            return self._model.loglikelihood_rolling(request.args[0] for request in requests)

        def generate_until(self, requests: list[Instance]) -> list[str]:
            asked = [request.args for request in requests]
            return self._model.generate_until([(context, *generation_of(options)) for context, options in asked])

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> Rendered:
            if add_generation_prompt or not chat_history or chat_history[-1]["role"] != "assistant":
                return rendered(self._tokenizer, chat_history)
            return rendered(self._tokenizer, chat_history[:-1], begun=chat_history[-1]["content"] or "")

        def chat_template(self, chat_template: bool | str = False) -> str:
            turns = [Message("user", "{user}"), Message("assistant", "{assistant}")]
            return self._tokenizer.decode(render(self._tokenizer, turns)[0])

        @property
        def tokenizer_name(self) -> str:
            return f"ghost_jax-{self._tokenizer.sha256[:12]}"

        def get_model_info(self) -> dict:
            """What the harness writes beside its results."""
            asked = {"prompts": self._model.prompts, "prompts_cropped": self._model.cropped}
            return {"workdir": str(self._workdir), "step": self._step, **asked}

    return GhostJax


def task_manager(names: Sequence[str], include_path: Path | None) -> "lm_eval.tasks.TaskManager":  # noqa: F821
    """Returns what loads the harness's tasks, and those in the YAML files of a folder.

    Raises UserError for an unknown name, and later, from its `load`, for tasks that cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        def load(self, task_list: list) -> dict:
            try:
                return super().load(task_list)
            except Exception as fault:  # YAML, the hub and the datasets library raise of all kinds
                raise UserError(
                    f"The tasks {', '.join(names)} cannot be loaded: {type(fault).__name__}: {str(fault)[:300]}. Where "
                    "their data are on the Hugging Face hub, fetch them once with a connection, without GHOST_OFFLINE."
                ) from None

    if include_path and not include_path.is_dir():
        raise UserError(f"--include_path={include_path} is no folder. Name the one that your tasks' YAML files lie in.")
    if include_path:
        own = Tasks(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # a group may hold the harness's own tasks
            return own
    manager = Tasks(include_path=include_path)  # reads 14,000 files, which takes 10 s
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"lm_eval knows no task {', '.join(unknown)}. `{sys.executable} -m lm_eval ls tasks` lists all; tasks of "
            "your own lie in a folder that --include_path names."
        )
    return manager


@command
def main(argv: Sequence[str]) -> int:
    """Runs tasks of EleutherAI's lm-evaluation-harness on a run."""
    parser = argparse.ArgumentParser(prog="python -m evals.harness", description=main.__doc__)
    parser.add_argument(
        "--workdir", required=True, type=local_path, metavar="DIR", help="the run, e.g. runs/chat_v5-nano"
    )
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="tasks or groups, e.g. arc_easy,piqa")
    parser.add_argument(
        "--include_path", type=local_path, metavar="DIR", help="folder with the YAML files of more tasks"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask in the chat format; for chat runs")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="write all that the harness returns as JSON")
    flags = parser.parse_args(argv)
    if flags.limit is not None and flags.limit < 1:
        raise UsageError(f"--limit is {flags.limit}; it must be at least 1.")

    language_model = adapter()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.utils import handle_non_serializable, make_table

    names = flags.tasks.split(",")
    tasks = task_manager(names, flags.include_path)
    jax_setup.set_up()
    model = language_model(flags.workdir)
    results = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=tasks,
        limit=flags.limit,
        apply_chat_template=flags.apply_chat_template,
    )
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if said := cropping(results["config"]["prompts_cropped"], results["config"]["prompts"]):
        print(said)
    if flags.out:
        write_text(flags.out, json.dumps(results, indent=1, default=handle_non_serializable))
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
