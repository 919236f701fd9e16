"""EleutherAI's lm-evaluation-harness on a run: `python -m evals.harness --workdir=runs/NAME --tasks=arc_easy,piqa`.

The harness asks a model for the log-probability of a text behind another, of a text alone, and for the text that
follows. `TextModel` answers these in strings with the readers of our own evaluations; the harness's class is a thin
adapter over it. The package lm_eval is optional.

A task there asks each question in one order of its options. Only `evals.ctibench` detects a collapse to one letter.
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

from evals.answering.prefix_tree import Branch, Tree, read, scored_text, shared_beginning
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
Request = tuple[str, Sequence[str], int, Sampling]  # context, stop strings, most new tokens, sampling


class Rendered(str):
    """A chat prompt as the harness handles it: a string that spells the role tokens, with their ids beside it.

    The string alone could not be encoded again: a question may spell a role token, which must not become one.

    Attributes:
      ids: [T] int32, the rendered turns, up to the assistant's role token.
      begun: the beginning of the assistant's turn, as text, because it may share a token with the continuation.
    """

    ids: np.ndarray
    begun: str


def rendered(tokenizer: Tokenizer, turns: Sequence[Mapping[str, str]], begun: str = "") -> Rendered:
    """Returns the prompt that ends in the assistant's turn, and in the part of it that has `begun`.

    Args:
      turns: each with a "role" and a "content", which may be None. A "system" turn is put in front of the user's first
        turn, a blank line between, because our conversations have no system role.

    Raises UserError where the vocabulary is that of a base model.
    """
    if not tokenizer.has_roles:
        raise UserError(
            "The run is a base model without a chat format. Leave out --apply_chat_template, or score a chat run."
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
    """A run that scores and continues strings. Plain text begins with BOS, as the documents of a base do.

    Attributes:
      prompts: how many were read so far.
      cropped: how many of them were longer than the model's context and cropped at their beginning.
    """

    def __init__(self, config: ModelConfig, params: dict, mesh: Mesh, tokenizer: Tokenizer):
        self._context, self._tokenizer = config.context, tokenizer
        self._predict = functools.partial(make_predict(config, params, mesh), params)
        size = {"batch_size": BATCH_SIZE, "stop_ids": tokenizer.end_ids}
        self._generator = functools.cache(lambda count: Generator(config, params, mesh, new_tokens=count, **size))
        self.prompts = self.cropped = 0

    def loglikelihood(self, requests: Iterable[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns for each `(context, continuation)` the continuation's log-probability, and whether it is greedy.

        It is greedy where each of its tokens is the most probable one. A context may be empty, or `Rendered`.

        Raises UserError for a continuation without text, or one longer than the model's context.
        """
        return self._read([self._split(*request) for request in requests])

    def loglikelihood_rolling(self, texts: Iterable[str]) -> list[float]:
        """Returns the log-probability of each text; one longer than the model's context is read in windows."""
        windows = [list(windows_of(self._encode(*self._opened(text)), self._context)) for text in texts]
        found = iter(self._read([window for of_text in windows for window in of_text]))
        return [sum(next(found)[0] for _ in of_text) for of_text in windows]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Returns the text that follows each context, up to the first of its stop strings.

        A prompt that leaves too few tokens for the answer is cropped at its beginning, down to half of the model's
        context. A sampled text depends on the request and its number alone.
        """
        texts = [""] * len(requests)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(len(requests)))
        for new_tokens, sampling in dict.fromkeys(request[2:] for request in requests if request[2]):
            rows = [row for row, request in enumerate(requests) if request[2:] == (new_tokens, sampling)]
            most = max(self._context - new_tokens, self._context // 2)
            prompts = [self._encode(*self._opened(requests[row][0])) for row in rows]
            self.prompts += len(prompts)
            self.cropped += sum(len(prompt) > most for prompt in prompts)
            generate = self._generator(new_tokens)
            generated = generate([prompt[-most:] for prompt in prompts], sampling, keys[np.array(rows)])
            for row, ids in zip(rows, generated, strict=True):
                texts[row] = before_any(self._tokenizer.decode(ids), requests[row][1])
        return texts

    def _opened(self, context: str) -> tuple[np.ndarray, str]:
        """Returns the fixed ids of a context, and its text behind them, whose ids depend on what follows."""
        if isinstance(context, Rendered):
            return context.ids, context.begun
        return np.array([self._tokenizer.bos_id], np.int32), context

    def _encode(self, ids: np.ndarray, text: str) -> np.ndarray:
        return np.concatenate([ids, np.array(self._tokenizer.encode(text), np.int32)])

    def _split(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of a context and of its continuation, encoded as one text.

        A word's token begins with the blank in front of it, so "is " and "Paris" encoded apart would be ids that the
        model has hardly seen in a row. Therefore blanks at the end of the context go to the continuation, and all ids
        behind the shared beginning are scored. Unlike in the harness's own models, a token on both sides counts.
        """
        ids, text = self._opened(context)
        whole = self._encode(ids, text + continuation)
        shared = len(shared_beginning([self._encode(ids, text.rstrip()), whole]))
        if shared == len(whole):
            raise UserError(
                f"A task scores an empty text behind a prompt that ends in {context[-60:]!r}. Give every choice of the "
                "question a text, or leave it out."
            )
        return whole[:shared], whole[shared:]

    def _read(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation behind its context, and whether it is greedy.

        Equal contexts are one trunk. Each prompt is cropped by itself, so that no score depends on other requests.
        """
        context = self._context
        self.prompts += len(pairs)
        asked: dict[bytes, tuple[np.ndarray, list[int], list[Branch]]] = {}
        for row, (before, scored) in enumerate(pairs):
            if len(scored) > context:
                raise UserError(
                    f"A task scores {len(scored):,} tokens, and the model's context is {context:,}. The text begins "
                    f"{self._tokenizer.decode(scored)[:60]!r}. Leave the question out, or use a larger model.context."
                )
            whole = np.concatenate([before, scored])
            self.cropped += len(whole) > context + 1  # the last token is scored and not read
            trunk, rest = np.split(whole[-(context + 1) :], [-(len(scored) + 1)])
            _, rows, branches = asked.setdefault(trunk.tobytes(), (trunk, [], []))
            rows.append(row)
            branches.append(scored_text(rest))
        trees = [Tree(trunk, tuple(branches)) for trunk, _, branches in asked.values()]
        readings = read(self._predict, trees, context=context, batch_size=BATCH_SIZE, doing="reading")
        answers = [(0.0, False)] * len(pairs)
        for (_, rows, _), of_tree in zip(asked.values(), readings, strict=True):
            for row, found in zip(rows, of_tree, strict=True):
                total = float(found.log_probs.sum(dtype=np.float64))
                answers[row] = total, bool(found.most_probable[:, 0].all())
        return answers


def windows_of(ids: np.ndarray, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pieces `(before, scored)` of ids [T], so that each id but the first is scored once.

    A piece has as many ids before those it scores as the context allows.
    """
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        yield ids[max(0, end - 1 - context) : start], ids[start:end]


def before_any(text: str, stops: Sequence[str]) -> str:
    """Returns the text up to the first of the stop strings; an empty one stops nothing."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


# ---- Options of a task ----

MOST_NEW = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
GENERATION = {"until", *MOST_NEW, "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
DEFAULT_MOST_NEW = 256  # the harness's
# Options of other libraries, with the value at which they change no text. At that value they are accepted.
NEUTRAL = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "n", "best_of", "typical_p"), 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_tokens", "no_repeat_ngram_size", "min_p"), 0),
    **dict.fromkeys(("diversity_penalty", "presence_penalty", "frequency_penalty"), 0),
}
NO_EFFECT = {"length_penalty", "early_stopping", "use_cache", "pad_token_id"}  # at any value, since there is one beam
SAMPLED_ONLY = {"top_k", "top_p", "min_p", "typical_p", "seed"}  # no effect where greedy


def generation_of(options: Mapping) -> tuple[list[str], int, Sampling]:
    """Returns the stop strings, the most new tokens and the sampling of a task's `generation_kwargs`.

    An option that is None is absent. As in the harness, decoding is greedy unless the temperature is above 0 and
    `do_sample` is not false.

    Raises UserError for an invalid value, and for an option that we lack, unless it has no effect.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        temperature = float(given.get("temperature", 0)) if given.get("do_sample", True) else 0.0
        if temperature == 0 or given.get("top_p") == 0:  # a top_p of 0 leaves the most probable token alone
            temperature = 0.0
            given = {name: value for name, value in given.items() if name not in SAMPLED_ONLY}
        top_k, top_p = int(given.get("top_k", 0)), float(given.get("top_p", 1))
        sampling = Sampling(temperature, top_k, top_p, float(given.get("repetition_penalty", 1)))
        new_tokens = int(next((given[name] for name in MOST_NEW if name in given), DEFAULT_MOST_NEW))
        until = given.get("until", [])
        until = [until] if isinstance(until, str) else [stop for stop in until if stop is not None]
        if new_tokens < 0 or not all(isinstance(stop, str) for stop in until):
            raise ValueError("the most new tokens are below 0, or until holds something that is not text")
    except (TypeError, ValueError, OverflowError, UsageError) as fault:
        raise UserError(
            f"A task's generation_kwargs, {dict(options)}, have an invalid value: {str(fault).rstrip('.')}. Correct it "
            "in the task's YAML file."
        ) from None
    unknown = sorted(name for name in given.keys() - GENERATION - NO_EFFECT if given[name] != NEUTRAL.get(name))
    if unknown:
        raise UserError(
            f"A task's generation_kwargs have {', '.join(unknown)}, which ghost_jax lacks. Remove them from the task; "
            f"it may have {', '.join(sorted(GENERATION))}."
        )
    return until, new_tokens, sampling


# ---- The harness ----


def prepare() -> None:
    """Imports lm_eval with the settings that this process needs. Raises UserError where it is not installed."""
    if os.environ.get("GHOST_OFFLINE") == "1":
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # bootstraps would fork a process that has JAX's threads
    try:
        import lm_eval.evaluator
        import lm_eval.tasks  # noqa: F401
    except ImportError as fault:
        raise UserError(
            f"lm_eval cannot be imported ({fault}). Install it with `{sys.executable} -m pip install {LM_EVAL}`."
        ) from None


@functools.cache
def adapter() -> type:
    """Returns `GhostJax(workdir)`, the harness's class of language models, registered there as "ghost_jax"."""
    prepare()
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    @register_model("ghost_jax")
    class GhostJax(LM):
        """A run as the harness calls it; see `TextModel`."""

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
            counts = {"prompts": self._model.prompts, "prompts_cropped": self._model.cropped}
            return {"workdir": str(self._workdir), "step": self._step, **counts}

    return GhostJax


def task_manager(names: Sequence[str], include_path: Path | None) -> "lm_eval.tasks.TaskManager":  # noqa: F821
    """Returns the loader of the harness's tasks, and of those in the YAML files of a folder.

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

    if include_path:
        if not include_path.is_dir():
            raise UserError(f"--include_path={include_path} is not a folder. Name the one with your tasks' YAML files.")
        own = Tasks(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # a group may hold the harness's own tasks
            return own
    manager = Tasks(include_path=include_path)  # reads 14,000 files in 10 s
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(
            f"lm_eval has no task {', '.join(unknown)}. `{sys.executable} -m lm_eval ls tasks` lists all; give the "
            "folder of your own tasks with --include_path."
        )
    return manager


@command
def main(argv: Sequence[str]) -> int:
    """Runs tasks of EleutherAI's lm-evaluation-harness on a run."""
    parser = argparse.ArgumentParser(prog="python -m evals.harness", description=main.__doc__)
    parser.add_argument("--workdir", required=True, type=local_path, metavar="DIR", help="a run: runs/chat_v5-nano")
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="tasks or groups, e.g. arc_easy,piqa")
    parser.add_argument("--include_path", type=local_path, metavar="DIR", help="folder with YAML files of more tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask in the chat format; for chat runs")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="write all that the harness returns as JSON")
    flags = parser.parse_args(argv)
    if flags.limit is not None and flags.limit < 1:
        raise UsageError(f"--limit is {flags.limit}; it must be at least 1.")

    model_class = adapter()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.utils import handle_non_serializable, make_table

    names = flags.tasks.split(",")
    tasks = task_manager(names, flags.include_path)
    jax_setup.set_up()
    results = simple_evaluate(
        model=model_class(flags.workdir),
        tasks=names,
        task_manager=tasks,
        limit=flags.limit,
        apply_chat_template=flags.apply_chat_template,
    )
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if cropped := cropping(results["config"]["prompts_cropped"], results["config"]["prompts"]):
        print(cropped)
    if flags.out:
        write_text(flags.out, json.dumps(results, indent=1, default=handle_non_serializable))
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
