"""The training loop: a generator of events, so that whoever shows them decides how.

Source: `train.py` of llama2.c, which this does in its order of steps.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.source import Source
from llamatui.tokenizers.base import Tokenizer
from llamatui.train import checkpoints
from llamatui.train.checkpoints import TrainState
from llamatui.train.config import TrainConfig
from llamatui.train.dataset import Dataset, Split, Windows
from llamatui.train.distributed import World
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step
from llamatui.train.lora import add_lora
from llamatui.train.machine import Machine, matmul_flops
from llamatui.train.model import Llama
from llamatui.train.optimizer import adamw, learning_rate
from llamatui.train.run_folder import BEST, LAST
from llamatui.train.sample import sample_text
from llamatui.train.weights import copy_weights

SMOOTHING = 0.9  # of tokens per second


class Trainer:
    """One run, of which every process of a distributed one has its own."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        dataset: Dataset,
        tokenizer: Tokenizer,
        folder: Path,
        machine: Machine,
        world: World,
        *,
        source: Source | None = None,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        """Makes the model and its optimizer.

        Args:
            folder: Where checkpoints go.
            source: A model to begin from, of the architecture `model_config`.
            resumed: A checkpoint of this run to go on from.

        Raises:
            UsageError: Data, machine and config do not go together.
        """
        if config.grad_accumulation % world.size:
            fitting = math.ceil(config.grad_accumulation / world.size) * world.size
            raise UsageError(
                f"--grad-accumulation: expected a multiple of the {world.size} processes, "
                f"found {config.grad_accumulation}",
                f"choose --grad-accumulation {fitting}",
            )
        if dataset.vocab_size > model_config.vocab_size:
            raise UsageError(
                f"{dataset.path}: expected ids of the model's vocabulary of {model_config.vocab_size}, "
                f"found one of {dataset.vocab_size}",
                "tokenize the text with the model's own tokenizer: llamatui train pretokenize --tokenizer",
            )
        self.config, self.dataset, self.tokenizer, self.folder = config, dataset, tokenizer, folder
        self.machine, self.world = machine, world
        seq_len = min(config.max_seq_len, model_config.max_seq_len)
        self.train_windows = Windows(dataset, "train", seq_len, seed=config.seed)
        torch.manual_seed(config.seed)
        self.model = Llama(model_config, config.dropout)
        if source is not None:
            copy_weights(source, self.model)
        if config.lora_rank:
            add_lora(self.model, config.lora_rank, config.lora_alpha)
        if resumed is not None:
            self.model.load_state_dict(resumed["model"])
        self.model.to(machine.device)
        self.optimizer = adamw(self.model.parameters(), config)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        self.state = TrainState()
        if resumed is not None:
            self.optimizer.load_state_dict(resumed["optimizer"])
            if self.scaler.is_enabled() and resumed.get("scaler"):
                self.scaler.load_state_dict(resumed["scaler"])
            self.state = TrainState(resumed["iter_num"], resumed["windows"], resumed["best_val_loss"])
        self._forward: Callable[..., Tensor] = torch.compile(self.model) if config.compile else self.model
        self._synced = (
            DistributedDataParallel(
                self._forward,
                device_ids=[machine.device.index] if machine.device.type == "cuda" else None,
            )
            if world.size > 1
            else None
        )

    def run(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Trains to the last step, telling each.

        Args:
            stop: Asked in each step; True ends the run after it, with a checkpoint.

        Raises:
            LlamatuiError: The loss is no number any more, or a checkpoint cannot be written.
        """
        c, state = self.config, self.state
        began, first = time.perf_counter(), state.iteration
        yield self._started()
        if first == 0:
            yield self._evaluate()
        speed, flops, stopped = 0.0, self.model.flops_per_token(), False
        while state.iteration < c.max_iters and not stopped:
            step_began = time.perf_counter()
            loss, norm, rate, stopped = self._step(stop)
            now = self._tokens_per_iter / (time.perf_counter() - step_began)
            speed = SMOOTHING * speed + (1 - SMOOTHING) * now if speed else now
            seconds_per_step = (time.perf_counter() - began) / (state.iteration - first)
            eta = seconds_per_step * (c.max_iters - state.iteration)
            yield Step(state.iteration, loss, rate, norm, speed, speed * flops / self._peak, eta)
            if stopped or state.iteration % c.eval_interval == 0 or state.iteration == c.max_iters:
                evaluation = None if stopped else self._evaluate()
                if evaluation is not None:
                    yield evaluation
                self._save(is_best=evaluation is not None and evaluation.is_best)
                yield Saved(state.iteration, self.folder / LAST)
        yield Finished(state.iteration, time.perf_counter() - began, state.best_valid_loss, stopped)

    def _started(self) -> Started:
        machine, trained = self.machine, [p.numel() for p in self.model.parameters() if p.requires_grad]
        self._tokens_per_iter = (
            self.config.batch_size * self.config.grad_accumulation * self.train_windows.seq_len
        )
        self._peak = matmul_flops(machine.device, machine.dtype) * self.world.size
        return Started(
            iteration=self.state.iteration,
            max_iters=self.config.max_iters,
            n_params=sum(p.numel() for p in self.model.parameters()),
            n_trained=sum(trained),
            tokens_per_iter=self._tokens_per_iter,
            epoch_iters=self.train_windows.n_windows
            / (self.config.batch_size * self.config.grad_accumulation),
            device=str(machine.device),
            dtype=machine.dtype_name,
            threads=machine.threads,
            world_size=self.world.size,
            peak_flops=self._peak,
        )

    def _step(self, stop: Callable[[], bool]) -> tuple[float, float, float, bool]:
        """Loss, norm of the gradient, learning rate, and whether some process was asked to stop.

        Raises:
            LlamatuiError: The loss or the gradient is no number. The weights are still those before the step.
        """
        c, state = self.config, self.state
        rate = learning_rate(c, state.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = range(self.world.rank, c.grad_accumulation, self.world.size)
        total = torch.zeros((), device=self.machine.device)
        for micro in mine:
            # Dropout depends on which forward pass this is, not on who does it or what came before.
            torch.manual_seed((c.seed << 40) + state.iteration * c.grad_accumulation + micro)
            with self._no_sync_before(micro == mine[-1]):
                loss = self._loss(self.train_windows, state.windows + micro * c.batch_size) / len(mine)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        # All processes stop after the same step: the question travels with the loss.
        value, stopped = self.world.mean(torch.stack((total, total.new_tensor(stop())))).tolist()
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, c.grad_clip or math.inf))
        if not math.isfinite(value) or (not math.isfinite(norm) and not self.scaler.is_enabled()):
            self.optimizer.zero_grad(set_to_none=True)
            raise LlamatuiError(
                f"step {state.iteration + 1}: loss {value}, norm of the gradient {norm}: it has diverged; "
                f"the best model so far is {self.folder / BEST}",
                f"begin again with a --learning-rate below {c.learning_rate:g}, or with --dtype float32",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        state.iteration += 1
        state.windows += c.batch_size * c.grad_accumulation
        return value, norm, rate, stopped > 0

    def _no_sync_before(self, is_last: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged once a step, with the last backward pass."""
        return nullcontext() if self._synced is None or is_last else self._synced.no_sync()

    def _loss(self, windows: Windows, first: int, n: int = 0) -> Tensor:
        """Mean loss over `n` windows from number `first`, by default a batch of them."""
        ids, targets = windows.batch(first, n or self.config.batch_size)  # (batch, seq_len) each
        x = torch.from_numpy(ids).to(self.machine.device, non_blocking=True)
        y = torch.from_numpy(targets).to(self.machine.device, non_blocking=True)
        forward = self._synced if self._synced is not None and self.model.training else self._forward
        with torch.autocast(self.machine.device.type, self.machine.dtype, enabled=self.machine.is_mixed):
            loss: Tensor = forward(x, y)
        return loss

    def _evaluate(self) -> Evaluation:
        losses = {split: self._mean_loss(split) for split in ("train", "valid")}
        valid = self.dataset.splits["valid"]
        is_best = losses["valid"] < self.state.best_valid_loss
        self.state.best_valid_loss = min(losses["valid"], self.state.best_valid_loss)
        sample = ""
        if self.config.sample_tokens and self.world.is_first:
            pieces = sample_text(
                self.model, self.tokenizer, self.config.sample_prompt, self.config.sample_tokens,
                temperature=0.8, seed=self.config.seed,
            )  # fmt: skip
            sample = self.config.sample_prompt + "".join(pieces)
        nats_per_byte = losses["valid"] * valid.n_tokens / valid.n_bytes if valid.n_bytes else math.nan
        return Evaluation(
            self.state.iteration,
            losses["train"],
            losses["valid"],
            nats_per_byte / math.log(2),
            is_best,
            sample,
        )

    @torch.no_grad()
    def _mean_loss(self, split: Split) -> float:
        """Nats per token over the first `eval_iters` batches of a split, dealt out among the processes."""
        windows = Windows(self.dataset, split, self.train_windows.seq_len, seed=None)
        size = self.config.batch_size
        n = min(self.config.eval_iters * size, windows.n_windows)
        n -= n % size if n > size else 0  # a batch of another size would be compiled for itself
        self.model.eval()
        sums = torch.zeros(2, device=self.machine.device)  # of losses, of windows
        for first in range(self.world.rank * size, n, self.world.size * size):
            count = min(size, n - first)
            sums += torch.stack((self._loss(windows, first, count) * count, sums.new_tensor(count)))
        self.model.train()
        total, count = self.world.sum(sums).tolist()
        return float(total / count)

    def _save(self, *, is_best: bool) -> None:
        if not self.world.is_first:
            return
        content = {
            "model": self.model.state_dict(),
            "model_args": checkpoints.model_args(self.model.config, self.config),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iter_num": self.state.iteration,
            "windows": self.state.windows,
            "best_val_loss": self.state.best_valid_loss,
            "config": asdict(self.config),
        }
        checkpoints.save(self.folder / LAST, content)
        if is_best:
            checkpoints.copy(self.folder / LAST, self.folder / BEST)


def config_of(model: ModelConfig, wanted: TrainConfig) -> TrainConfig:
    """`wanted` with the architecture of a model that exists; windows stay as long where they fit."""
    return replace(
        wanted,
        dim=model.dim,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        hidden_dim=model.hidden_dim,
        max_seq_len=min(wanted.max_seq_len, model.max_seq_len),
        rope_theta=model.rope_theta,
        tied=model.shared_classifier,
    )
