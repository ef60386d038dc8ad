"""The training loop: a generator of events, so that whoever shows them decides how.

Source: `train.py` of llama2.c, which this does in its order of steps.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
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
from llamatui.train.dataset import SPLITS, Dataset, Windows
from llamatui.train.distributed import World
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step
from llamatui.train.lora import add_lora
from llamatui.train.machine import Machine
from llamatui.train.model import Llama
from llamatui.train.optimizer import adamw, learning_rate
from llamatui.train.run_folder import BEST, LAST
from llamatui.train.sample import sample_text
from llamatui.train.weights import copy_weights

COMPILE_OPTIONS = {"fallback_random": True}
"""Dropout as without compiling: the same, and faster on a CPU than what the compiler writes."""
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
            UsageError: Data, machine and config do not go together; or the resumed run is at its end.
            CheckpointError: `source` or `resumed` is damaged.
        """
        if config.grad_accumulation % world.size:
            fitting = math.ceil(config.grad_accumulation / world.size) * world.size
            raise UsageError(
                f"grad_accumulation: expected a multiple of the {world.size} processes, "
                f"found {config.grad_accumulation}",
                f"choose --grad-accumulation {fitting}",
            )
        self.config, self.dataset, self.tokenizer, self.folder = config, dataset, tokenizer, folder
        self.machine, self.world = machine, world
        seq_len = min(config.max_seq_len, model_config.max_seq_len)
        self.train_windows = Windows(dataset, "train", seq_len, seed=config.seed)
        self.eval_windows = {split: Windows(dataset, split, seq_len, seed=None) for split in SPLITS}
        self.tokens_per_iter = config.batch_size * config.grad_accumulation * seq_len
        torch.manual_seed(config.seed)
        self.model = Llama(model_config, config.dropout)
        if source is not None:
            copy_weights(source, self.model)
        if config.lora_rank:
            add_lora(self.model, config.lora_rank, config.lora_alpha)
        self.model.to(machine.device)
        self.optimizer = adamw(self.model.parameters(), config)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        self.state = TrainState()
        if resumed is not None:
            path = folder / LAST
            self.state = checkpoints.restore(resumed, path, self.model, self.optimizer, self.scaler)
            if self.state.iteration >= config.max_iters:
                raise UsageError(
                    f"{path}: the run is finished: {self.state.iteration} of {config.max_iters} steps",
                    f"to train longer, choose a --max-iters above {self.state.iteration}",
                )
        self._forward: Callable[..., Tensor] = (
            torch.compile(self.model, options=COMPILE_OPTIONS) if config.compile else self.model
        )
        self._synced = (
            DistributedDataParallel(
                self._forward,
                device_ids=[machine.device.index] if machine.device.type == "cuda" else None,
            )
            if world.size > 1
            else None
        )

    @property
    def checkpoint_size(self) -> int:
        """In bytes: weights, and two moments of each that is trained."""
        return sum(p.nbytes * (3 if p.requires_grad else 1) for p in self.model.parameters())

    def run(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Trains to the last step, telling each.

        Args:
            stop: Asked in each step, and in an evaluation; True ends the run after it, with a checkpoint.

        Raises:
            LlamatuiError: The loss is no number any more, or a checkpoint cannot be written.
        """
        c, state = self.config, self.state
        peak = self.machine.flops * self.world.size
        flops, speed = self.model.flops_per_token(self.train_windows.seq_len), 0.0
        began, first = time.perf_counter(), state.iteration
        yield self._started(peak)
        # So there is a checkpoint from the start. A run that was stopped where it would have been evaluated
        # makes up for it.
        stopped = False
        if state.iteration % c.eval_interval == 0 and not state.evaluated:
            stopped = yield from self._evaluated_and_saved(stop)
        trained_from = time.perf_counter()
        while state.iteration < c.max_iters and not stopped:
            step_began = time.perf_counter()
            loss, norm, rate, asked = self._step(stop)
            now = self.tokens_per_iter / (time.perf_counter() - step_began)
            speed = SMOOTHING * speed + (1 - SMOOTHING) * now if speed else now
            seconds_per_step = (time.perf_counter() - trained_from) / (state.iteration - first)
            eta = seconds_per_step * (c.max_iters - state.iteration)
            yield Step(state.iteration, loss, rate, norm, speed, speed * flops / peak, eta)
            stopped = asked and state.iteration < c.max_iters
            if stopped:
                yield self._saved(is_best=False)
            elif state.iteration == c.max_iters:
                yield from self._evaluated_and_saved(lambda: False)
            elif state.iteration % c.eval_interval == 0:
                stopped = yield from self._evaluated_and_saved(stop)
        yield Finished(state.iteration, time.perf_counter() - began, state.best_valid_loss, stopped)

    def _started(self, peak: float) -> Started:
        c, machine, parameters = self.config, self.machine, list(self.model.parameters())
        return Started(
            iteration=self.state.iteration,
            max_iters=c.max_iters,
            n_params=sum(p.numel() for p in parameters),
            n_trained=sum(p.numel() for p in parameters if p.requires_grad),
            tokens_per_iter=self.tokens_per_iter,
            epoch_iters=self.train_windows.n_windows / (c.batch_size * c.grad_accumulation),
            eval_interval=c.eval_interval,
            log_interval=c.log_interval,
            device=str(machine.device),
            dtype=machine.dtype_name,
            threads=machine.threads,
            world_size=self.world.size,
            peak_flops=peak,
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
            torch.manual_seed(self._dropout_seed(micro))
            with self._no_sync_before(micro == mine[-1]):
                first = state.windows + micro * c.batch_size
                loss = self._loss(self.train_windows, first, c.batch_size) / len(mine)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        # All processes stop after the same step: the question travels with the loss.
        value, stopped = self.world.mean(torch.stack((total, total.new_tensor(stop())))).tolist()
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, c.grad_clip or math.inf))
        if not math.isfinite(value) or (not math.isfinite(norm) and not self.scaler.is_enabled()):
            self.optimizer.zero_grad(set_to_none=True)
            raise self._diverged(f"step {state.iteration + 1}: loss {value}, norm of the gradient {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        state.iteration, state.evaluated = state.iteration + 1, False
        state.windows += c.batch_size * c.grad_accumulation
        return value, norm, rate, stopped > 0

    def _dropout_seed(self, micro: int) -> int:
        sequence = np.random.SeedSequence((self.config.seed, self.state.iteration, micro))
        return int(sequence.generate_state(1, np.uint64)[0])

    def _no_sync_before(self, is_last: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged once a step, with the last backward pass."""
        return nullcontext() if self._synced is None or is_last else self._synced.no_sync()

    def _loss(self, windows: Windows, first: int, n: int) -> Tensor:
        """Mean loss over `n` windows from number `first`, in nats per token."""
        ids, targets = windows.batch(first, n)  # (n, seq_len) each
        x = torch.from_numpy(ids).to(self.machine.device)
        y = torch.from_numpy(targets).to(self.machine.device)
        forward = self._synced if self._synced is not None and self.model.training else self._forward
        with torch.autocast(self.machine.device.type, self.machine.dtype, enabled=self.machine.is_mixed):
            loss: Tensor = forward(x, y)
        return loss

    def _evaluated_and_saved(self, stop: Callable[[], bool]) -> Generator[Event, None, bool]:
        """Returns whether the evaluation was given up because some process was asked to stop."""
        evaluation = self._evaluate(stop)
        if evaluation is not None:
            yield evaluation
        yield self._saved(is_best=evaluation is not None and evaluation.is_best)
        return evaluation is None

    def _evaluate(self, stop: Callable[[], bool]) -> Evaluation | None:
        """None where it was given up.

        Raises:
            LlamatuiError: A loss is no number: these weights are not to be saved.
        """
        train, valid = (self._mean_loss(self.eval_windows[split], stop) for split in SPLITS)
        if train is None or valid is None:
            return None
        if not (math.isfinite(train) and math.isfinite(valid)):
            raise self._diverged(f"evaluation after step {self.state.iteration}: loss {valid}")
        is_best = valid < self.state.best_valid_loss
        self.state.best_valid_loss = min(valid, self.state.best_valid_loss)
        self.state.evaluated = True
        text = self.dataset.splits["valid"]
        return Evaluation(
            self.state.iteration,
            train,
            valid,
            bits_per_byte=valid / math.log(2) * text.n_tokens / text.n_bytes,
            is_best=is_best,
            sample=self._sample() if self.world.is_first else "",
        )

    @torch.no_grad()
    def _mean_loss(self, windows: Windows, stop: Callable[[], bool]) -> float | None:
        """Nats per token over at most `eval_iters` batches, from all over a split, the same each time.

        Batches are dealt out among the processes. None where one of them was asked to stop.
        """
        size = min(self.config.batch_size, windows.n_windows)
        n = min(self.config.eval_iters, windows.n_windows // size)
        sums = torch.zeros(2, device=self.machine.device)  # of losses, of processes that stop
        self.model.eval()
        for batch in range(self.world.rank, n, self.world.size):
            if stop():
                sums[1] = 1
                break
            sums[0] += self._loss(windows, batch * windows.n_windows // n, size)
        self.model.train()
        total, stopped = self.world.sum(sums).tolist()
        return None if stopped else total / n

    def _sample(self) -> str:
        c = self.config
        if not c.sample_tokens:
            return ""
        pieces = sample_text(
            self.model, self.tokenizer, c.sample_prompt, c.sample_tokens, temperature=0.8, seed=c.seed
        )
        return c.sample_prompt + "".join(pieces)

    def _saved(self, *, is_best: bool) -> Saved:
        path, best = self.folder / LAST, self.folder / BEST
        if self.world.is_first:
            content = {
                "model": self.model.state_dict(),
                "model_args": checkpoints.model_args(self.model.config, self.config),
                "llamatui": checkpoints.more_args(self.model.config, self.config),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "iter_num": self.state.iteration,
                "windows": self.state.windows,
                "best_val_loss": self.state.best_valid_loss,
                "evaluated": self.state.evaluated,
                "config": asdict(self.config),
                "data": self.dataset.n_tokens,
            }
            # Before the last: killed in between, no checkpoint knows of a best one that is not there.
            checkpoints.save(best if is_best else path, content)
            if is_best:
                checkpoints.copy(best, path)
        return Saved(self.state.iteration, path)

    def _diverged(self, found: str) -> LlamatuiError:
        rate = self.config.learning_rate
        if not (self.folder / LAST).exists():
            return LlamatuiError(f"{found}: expected a number", "the model to begin with is damaged")
        return LlamatuiError(
            f"{found}: the run has diverged; {self.folder / LAST} and {BEST} are of before",
            f"go on from there: --resume with a --learning-rate below {rate:g}"
            + (", or --dtype float32" if self.machine.is_mixed else ""),
        )
