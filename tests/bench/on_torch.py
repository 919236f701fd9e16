"""The peers' sides in PyTorch and transformers.

pip install torch==2.13.0 transformers==5.23.0     # peers, installed for the benchmark; torch.compile asks for g++
"""

import itertools
import resource
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.bench import ragged
from tests.bench.torch_model import Model, load
from tests.bench.work import FLOAT32, LETTERS, OPTIMIZER, PADDED_BATCH, PRODUCTS, RATE, SCORED_BATCH, Files, Work

IGNORED = -100  # a label that transformers' loss leaves out


class OnTorch:
    """A side that computes with PyTorch, on an accelerator if there is one.

    Args:
      dtype: the precision. "bfloat16" trains float32 weights under autocast; weights that only predict are bfloat16.
    """

    def __init__(self, work: dict, folder: str, dtype: str):
        self.work, self.files = Work(**work), Files(Path(folder))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype)
        self.mixed = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def here(self, values: np.ndarray) -> torch.Tensor:
        """Returns ids as a tensor on the device."""
        return torch.from_numpy(values.astype(np.int64)).to(self.device)

    def finish(self) -> None:
        """Waits until the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> list[float]:
        self.turn()
        return []

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Training(OnTorch):
    """Updates of one model by AdamW, decay on matrices alone as in ours."""

    def begin(self, model: nn.Module) -> None:
        """Takes a model whose weights are float32."""
        self.model = model.to(self.device).train()
        decayed, others = [], []
        for name, values in model.named_parameters():
            (decayed if values.ndim > 1 and "embed" not in name else others).append(values)
        groups = [
            {"params": decayed, "weight_decay": OPTIMIZER["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = OPTIMIZER["b1"], OPTIMIZER["b2"]
        self._optimizer = torch.optim.AdamW(groups, lr=RATE, betas=betas, fused=True)

    def step(self, loss: torch.Tensor) -> None:
        """Moves the weights down the gradient of a loss []."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER["clip_norm"])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class Pretrain(Training):
    """The updates of `tests.bench.ours.Pretrain`, from the same weights on the same rows.

    Args:
      shape: of the model, as `tests.bench.subject.write_base` returns it; it must have so many `parameters`.
      compiled: whether by torch.compile, or eagerly.
    """

    def __init__(self, work: dict, folder: str, dtype: str, shape: dict, parameters: int, compiled: bool):
        super().__init__(work, folder, dtype)
        model = Model(shape, self.work.seq_len)
        load(model, load_file(self.files.base / "model.safetensors"))
        found = sum(values.numel() for values in model.parameters())
        assert found == parameters, f"{found:,} parameters here, {parameters:,} there"
        self.begin(model)
        self._loss = torch.compile(self.model) if compiled else self.model
        tokens = self.here(np.stack(ragged.read(self.files.rows, "tokens")))
        self._tokens, self._targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def warm_up(self) -> list[float]:
        return [float(self._update())]

    def turn(self) -> float:
        for _ in range(self.work.steps):
            self._update()
        self.finish()
        return float(self.work.steps * self._tokens.numel())

    def _update(self) -> torch.Tensor:
        with self.mixed:
            loss = self._loss(self._tokens, self._targets)
        self.step(loss)
        return loss.detach()


class Sft(Training):
    """The conversations of `tests.bench.ours.Sft`, as TRL's SFTTrainer trains on them by default.

    Eight conversations an update, padded to the longest of them, the loss on the answers alone by transformers' own
    model. Of TRL's defaults, recomputing blocks in the backward pass is left out: it saves memory and costs time.
    """

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        self.begin(AutoModelForCausalLM.from_pretrained(self.files.exported, dtype=torch.float32))
        self._turns = (
            [ragged.read(self.files.records, f"{name} {turn}") for name in ("ids", "learnt")]
            for turn in range(self.work.turns)
        )

    def turn(self) -> float:
        ids, learnt = next(self._turns)
        for start in range(0, len(ids), PADDED_BATCH):
            batch = slice(start, start + PADDED_BATCH)
            tokens, marks = ragged.padded(ids[batch]), ragged.padded(learnt[batch])
            real = ragged.padded([np.ones(len(each)) for each in ids[batch]])
            labels = np.where(marks == 1, tokens, IGNORED)
            with self.mixed:
                loss = self.model(
                    input_ids=self.here(tokens), attention_mask=self.here(real), labels=self.here(labels)
                ).loss
            self.step(loss)
        self.finish()
        return float(sum(len(each) - 1 for each in ids))  # as ours counts them: the last token is only a target


class Letters(OnTorch):
    """The prompts of `tests.bench.ours.Letters` by transformers, in padded batches of prompts sorted by length.

    Only the last place of a row is asked for its logits.
    """

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        model = AutoModelForCausalLM.from_pretrained(self.files.exported, dtype=self.dtype)
        self._model = model.to(self.device).eval()
        self._parts = [ragged.read(self.files.prompts, f"part {number}") for number in range(self.work.rounds)]
        self._letters = self.here(ragged.read(self.files.prompts, "letters")[0])
        self._turns = itertools.cycle(self._parts)

    def warm_up(self) -> list[float]:
        first, *_ = [self._scores(part) for part in self._parts]
        return first.ravel().tolist()

    def turn(self) -> float:
        return float(len(self._scores(next(self._turns))))

    @torch.inference_mode()
    def _scores(self, prompts: list[np.ndarray]) -> np.ndarray:
        """Returns the log-probabilities [N, 4] of the letters behind each prompt."""
        scores = np.zeros((len(prompts), len(LETTERS)), np.float32)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(by_length), SCORED_BATCH):
            numbers = by_length[start : start + SCORED_BATCH]
            rows = [prompts[i] for i in numbers]
            real = ragged.padded([np.ones(len(row)) for row in rows], left=True)
            logits = self._model(
                input_ids=self.here(ragged.padded(rows, left=True)),
                attention_mask=self.here(real),
                position_ids=self.here(np.maximum(real.cumsum(1) - 1, 0)),
                logits_to_keep=1,
                use_cache=False,
            ).logits[:, -1]
            scores[numbers] = logits.float().log_softmax(-1)[:, self._letters].cpu().numpy()
        return scores


class Decoding(OnTorch):
    """The text of `tests.bench.ours.Decoding` by transformers' `generate`."""

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        model = AutoModelForCausalLM.from_pretrained(self.files.exported, dtype=self.dtype)
        self._model = model.to(self.device).eval()
        self._model.generation_config.eos_token_id = None  # every turn is of the same length
        self._prompt = ragged.read(self.files.prompts, "continued")[0]

    def warm_up(self) -> list[float]:
        ids = [float(each) for each in self._text()]
        return ids if self.dtype == getattr(torch, FLOAT32) else []

    def turn(self) -> float:
        self._prompt = np.roll(self._prompt, 1)
        return float(len(self._text()))

    def _text(self) -> list[int]:
        prompt = self.here(self._prompt[None])
        ids = self._model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.work.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return ids[0, prompt.shape[1] :].tolist()


class Product(OnTorch):
    """The rate at which PyTorch multiplies matrices, as `tests.bench.ours.Product`. Unit: FLOP."""

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        width = self.work.product
        self._x = torch.ones(width, width, dtype=self.dtype, device=self.device)

    def turn(self) -> float:
        for _ in range(PRODUCTS):
            self._x @ self._x
            self.finish()
        return 2.0 * self.work.product**3 * PRODUCTS
