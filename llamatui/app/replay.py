"""Replay files: all that decided a text, so that it can be shown without its model, or computed again.

A file of schema "llamatui.replay/1" has the hashes of model and tokenizer, backend, versions, machine, and
`steps`: generations of one session, in order. Each has the ids of its prompt, settings, the state of the
random numbers at its start, limits, the ids that came out with their logprobs, and `changes`: from which
token on another backend, or another setting, took part.

recorder = Recorder(generation, shown="Once upon")      before the first token
for record in generation: recorder.add(record)
replay = Replay.of(model, [recorder.step(text)])
replay.write(path); Replay.read(path)

`llamatui.app.replay_check.verify` computes one again. Nothing in a file is believed: types, ranges and
lengths are checked as it is read; what only the model can tell is checked by `verify`. Imports no NumPy, so
that a file is played at once.
"""

import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatui.app.json_fields import Fields
from llamatui.app.sampling import MAX_SEED, Sampling
from llamatui.app.text_file import write_whole
from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.base import text_to_bytes

if TYPE_CHECKING:
    from llamatui.app.engine import FinishReason, Generation, OverflowPolicy, Swap, TokenRecord
    from llamatui.app.model import LoadedModel

SCHEMA = "llamatui.replay/1"

MAX_BYTES = 32 << 20
"""Of a file: some 700,000 tokens."""
MAX_STEPS = 10_000
LONGEST_NAME = 255
LARGEST = (1 << 63) - 1  # of ids and lengths: the model bounds them
HASH = re.compile(r"[0-9a-f]{64}")
REASONS = ("stop", "eos", "length", "context", "cancelled", "error")
POLICIES = ("stop", "shift", "error")


@dataclass(frozen=True, slots=True)
class Change:
    """What is different from a token on."""

    at: int
    """Index of the first new token that was chosen with it."""
    sampling: Sampling | None = None
    backend: str | None = None
    """Another backend took over."""

    def as_json(self) -> dict[str, Any]:
        changed = {"sampling": self.sampling and asdict(self.sampling), "backend": self.backend}
        return {"at": self.at} | {name: value for name, value in changed.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Step:
    """One generation, from its prompt to its end."""

    prompt_ids: tuple[int, ...]
    """As it ran: one that did not fit the context has been cut already."""
    cached_tokens: int
    """Of the prompt, how many were in the cache: they may have been computed one by one, not together."""
    backend: str
    """By which it began."""
    sampling: Sampling
    """With the seed in use."""
    rng_state: int
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    """Texts that end it."""
    context: int
    overflow: "OverflowPolicy"
    keep: int
    max_new_tokens: int | None
    output_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Of each output id; None where it was not measured."""
    text: str
    finish_reason: "FinishReason"
    changes: tuple[Change, ...] = ()
    shown: str = ""
    """What stood in front of the text where it was read: the prompt, unless it was a chat's."""

    def as_json(self) -> dict[str, Any]:
        return {
            "shown": self.shown,
            "prompt_ids": list(self.prompt_ids),
            "cached_tokens": self.cached_tokens,
            "backend": self.backend,
            "sampling": asdict(self.sampling),
            "rng_state": self.rng_state,
            "limits": {
                "stop_ids": list(self.stop_ids),
                "stop": list(self.stops),
                "context": self.context,
                "overflow": self.overflow,
                "keep": self.keep,
                "max_new_tokens": self.max_new_tokens,
            },
            "output_ids": list(self.output_ids),
            "logprobs": list(self.logprobs),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "changes": [change.as_json() for change in self.changes],
        }

    @classmethod
    def from_json(cls, fields: Fields) -> "Step":
        limits = fields.child("limits")
        output = fields.integers("output_ids", 0, LARGEST, MAX_BYTES)
        step = cls(
            prompt_ids=fields.integers("prompt_ids", 0, LARGEST, MAX_BYTES),
            cached_tokens=fields.integer("cached_tokens", 0, LARGEST),
            backend=fields.text("backend", LONGEST_NAME),
            sampling=_sampling(fields.child("sampling")),
            rng_state=fields.integer("rng_state", 1, MAX_SEED),
            stop_ids=limits.integers("stop_ids", 0, LARGEST, MAX_BYTES),
            stops=tuple(limits.texts("stop", MAX_BYTES, MAX_BYTES)),
            context=limits.integer("context", 2, LARGEST),
            overflow=limits.choice("overflow", POLICIES),  # type: ignore[arg-type]
            keep=limits.integer("keep", 0, LARGEST),
            max_new_tokens=limits.optional_integer("max_new_tokens", 0, LARGEST),
            output_ids=output,
            logprobs=fields.optional_numbers("logprobs", len(output)),
            text=fields.text("text", MAX_BYTES),
            finish_reason=fields.choice("finish_reason", REASONS),  # type: ignore[arg-type]
            changes=tuple(_change(change, len(output)) for change in fields.children("changes", MAX_BYTES)),
            shown=fields.text("shown", MAX_BYTES),
        )
        if not step.prompt_ids:
            raise fields.wrong("prompt_ids", "at least one id", "none")
        if len(output) > step.most:
            raise fields.wrong("output_ids", f"at most {step.most} ids, as its limits say", str(len(output)))
        return step

    @property
    def most(self) -> int:
        """New tokens that its limits allow."""
        # The last one chosen may stand behind a full context.
        room = self.context if self.overflow == "shift" else self.context + 1 - len(self.prompt_ids)
        if self.max_new_tokens is not None:
            return self.max_new_tokens if self.overflow == "shift" else min(max(room, 0), self.max_new_tokens)
        return max(room, 0)


def _sampling(fields: Fields) -> Sampling:
    try:
        return Sampling(
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            top_k=fields.integer("top_k", 0, LARGEST),
            min_p=fields.number("min_p"),
            repeat_penalty=fields.number("repeat_penalty"),
            seed=fields.integer("seed", 1, MAX_SEED),
        )
    except UsageError as error:
        # Of a type or a range: the former says already where.
        begin = "" if error.hint == fields.hint else f"{fields.file}: {fields.path}: "
        raise UsageError(f"{begin}{error.message}", fields.hint) from None


def _change(fields: Fields, outputs: int) -> Change:
    return Change(
        fields.integer("at", 0, outputs),
        _sampling(fields.child("sampling")) if fields.has("sampling") else None,
        fields.text("backend", LONGEST_NAME) if fields.has("backend") else None,
    )


class Recorder:
    """Watches a generation that has not begun, and makes a `Step` of it at any time."""

    def __init__(self, generation: "Generation", *, shown: str = "", stops: Sequence[str] = ()) -> None:
        sampler = generation.sampler
        self._generation = generation
        self._shown, self._stops = shown, tuple(stop for stop in stops if stop)
        self._sampling = self._now = replace(sampler.settings, seed=sampler.seed)
        self._rng_state = sampler.state
        self._cached = generation.cached_tokens
        self._backend = ""
        self._swap: Swap | None = None
        self._ids: list[int] = []
        self._logprobs: list[float | None] = []
        self._changes: list[Change] = []

    def add(self, record: "TokenRecord") -> None:
        """Called with each record, before the next one is asked for."""
        generation, sampler = self._generation, self._generation.sampler
        self._see_backend()
        used = replace(sampler.used, seed=sampler.seed)
        if used != self._now:
            self._now = used
            self._changes.append(Change(len(self._ids), sampling=used))
        self._ids.append(record.id)
        self._logprobs.append(record.logprob)
        assert generation.new_tokens[-1] == record.id, "a record was left out"

    def _see_backend(self) -> None:
        swap = self._generation.swap
        self._backend = self._backend or (swap.old if swap else self._generation.session.backend.name)
        if swap is not None and swap != self._swap:
            self._changes.append(Change(swap.at, backend=swap.new))
        self._swap = swap

    def step(self, text: str) -> Step:
        """What has been recorded. `text`: the output ids', without a stop sequence."""
        self._see_backend()
        generation, limits = self._generation, self._generation.limits
        count = len(self._ids)
        return Step(
            prompt_ids=tuple(generation.prompt),
            cached_tokens=self._cached,
            backend=self._backend,
            sampling=self._sampling,
            rng_state=self._rng_state,
            stop_ids=tuple(sorted(limits.stop_ids)),
            stops=self._stops,
            context=generation.session.context,
            overflow=limits.overflow,
            keep=limits.keep,
            max_new_tokens=limits.max_new_tokens,
            output_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            text=text,
            finish_reason=generation.finish_reason,
            changes=tuple(change for change in self._changes if change.at <= count),
            shown=self._shown,
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What a file holds."""

    created_at: str
    model: dict[str, Any]
    """name, sha256, format, params"""
    tokenizer: dict[str, Any]
    """kind, sha256"""
    backend: dict[str, Any]
    """name, threads: with what the first step began."""
    versions: dict[str, Any]
    """Of llamatui, Python, NumPy and Numba; None for what is not installed."""
    machine: dict[str, Any]
    """architecture; simd: the vector instructions of compiled kernels, None where none ran."""
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, model: "LoadedModel", steps: Sequence[Step]) -> "Replay":
        """Generations of one session of `model`, in order; at least one."""
        from llamatui.app.file_hash import file_sha256
        from llamatui.backends.registry import KERNELS

        used = {step.backend for step in steps}
        used |= {change.backend for step in steps for change in step.changes if change.backend}
        simd = None
        if used & KERNELS.keys():
            from llamatui.backends.kernels.cpu import detect

            simd = detect()
        return cls(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model={
                "name": model.name,
                "sha256": model.sha256(),
                "format": f"v{model.checkpoint.version}",
                "params": model.checkpoint.config.n_params,
            },
            tokenizer={"kind": model.tokenizer.format, "sha256": file_sha256(model.tokenizer_path)},
            backend={"name": steps[0].backend, "threads": model.backend.threads},
            versions={
                "llamatui": _version("llamatui"),
                "python": platform.python_version(),
                "numpy": _version("numpy"),
                "numba": _version("numba"),
            },
            machine={"architecture": platform.machine(), "system": sys.platform, "simd": simd},
            steps=tuple(steps),
        )

    def to_json(self) -> dict[str, Any]:
        about = {
            name: getattr(self, name)
            for name in ("created_at", "model", "tokenizer", "backend", "versions", "machine")
        }
        return {"schema": SCHEMA, **about, "steps": [step.as_json() for step in self.steps]}

    @classmethod
    def from_json(cls, content: object, file: str = "replay") -> "Replay":
        """`file`: its name, for messages.

        Raises:
            UsageError: It is none, or damaged, or not of this schema.
        """
        fields = Fields(content, file, "llamatui generate --record writes such a file")
        if (schema := fields.text("schema", LONGEST_NAME)) != SCHEMA:
            raise fields.wrong("schema", SCHEMA, schema)
        model, tokenizer, backend = (fields.child(name) for name in ("model", "tokenizer", "backend"))
        name = model.text("name", LONGEST_NAME)
        if not name or re.search(r"[/\\\x00]", name):
            raise model.wrong("name", "a model's name", name)
        steps = fields.children("steps", MAX_STEPS)
        if not steps:
            raise fields.wrong("steps", "at least one", "none")
        return cls(
            created_at=fields.text("created_at", LONGEST_NAME),
            model={
                "name": name,
                "sha256": model.matching("sha256", HASH, "a SHA-256 in hexadecimal"),
                "format": model.text("format", LONGEST_NAME),
                "params": model.integer("params", 0, 1 << 50),
            },
            tokenizer={
                "kind": tokenizer.text("kind", LONGEST_NAME),
                "sha256": tokenizer.matching("sha256", HASH, "a SHA-256 in hexadecimal"),
            },
            backend={
                "name": backend.text("name", LONGEST_NAME),
                "threads": backend.integer("threads", 1, 1024),
            },
            versions=fields.labels("versions"),
            machine=fields.labels("machine"),
            steps=tuple(Step.from_json(step) for step in steps),
        )

    def write(self, path: Path, *, force: bool = False) -> None:
        """Writes all or nothing.

        Args:
            force: In the place of a file that is there already.

        Raises:
            UsageError: See `check_target`.
            LlamatuiError: It cannot be written, or would be too large to be read again.
        """
        check_target(path, force=force)
        # What is not UTF-8 in a text or a prompt, and half a surrogate pair, becomes U+FFFD.
        text = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)
        content = text_to_bytes(text).decode("utf-8", "replace").encode() + b"\n"
        if len(content) > MAX_BYTES:
            raise LlamatuiError(
                f"{path}: a replay file has at most {MAX_BYTES:,} bytes, this text takes {len(content):,}",
                "record a shorter text",
            )
        try:
            write_whole(path, content, overwrite=force)
        except OSError as error:
            raise LlamatuiError(
                f"{path}: cannot be written: {error.strerror or error}", "choose another place for the file"
            ) from error

    @classmethod
    def read(cls, path: Path) -> "Replay":
        """Raises UsageError for a file that is none, or damaged."""
        try:
            if not path.is_file() and path.exists():  # reading a pipe would wait for ever
                raise UsageError(f"{path}: expected a replay file, found a folder, device or pipe")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}", "check the name") from error
        if len(data) > MAX_BYTES:
            raise UsageError(
                f"{path}: expected a replay file of at most {MAX_BYTES:,} bytes, found a larger one"
            )
        try:
            content = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}: expected a replay file, found no JSON: {error}",
                "llamatui generate --record writes such a file",
            ) from None
        return cls.from_json(content, str(path))


def check_target(path: Path, *, force: bool) -> None:
    """Whether a replay may be written there, asked before a long generation.

    Raises:
        UsageError: It is there already, or no file; or its folder is not there.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: expected a folder, found none", "create it, or choose another")
    if path.exists() and not path.is_file():
        raise UsageError(
            f"{path}: expected a file to write, found a folder, device or pipe", "choose another name"
        )
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "choose another name, or --force writes over it")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
