"""`llamatui generate`: text to stdout, numbers to stderr, or one JSON object."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamatui.app.cli import loading, options
from llamatui.app.cli.terminal import (
    INTERRUPTED,
    Interrupted,
    counted,
    dumps,
    printable,
    read_text,
    short_count,
)
from llamatui.app.config import Settings
from llamatui.errors import LlamatuiError, UsageError

if TYPE_CHECKING:
    from llamatui.app.engine import Generation
    from llamatui.app.model import LoadedModel
    from llamatui.app.result import Result
    from llamatui.backends.base import Backend

DEFAULT_POSITIONS = 256  # run.c's


def generate(
    model: options.Model = None,
    prompt: Annotated[
        str | None, typer.Option("-i", "--prompt", help="Text to go on from; - reads stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "-f", "--file", help="File with the prompt; - is stdin. One newline at its end is dropped."
        ),
    ] = None,
    system: options.System = None,
    tokenizer: options.Tokenizer = None,
    backend: options.Backend = None,
    threads: options.Threads = None,
    chat_format: options.ChatFormat = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", min=0, help="Positions to run, prompt included, 0 fills the context; default: 256."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="New tokens at most; default: no limit but -n.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; may be repeated.")] = None,
    context: options.Context = None,
    overflow: options.Overflow = None,
    special: Annotated[bool, typer.Option("--special", help="Parse special tokens in the prompt.")] = False,
    json: options.Json = False,
    stream: Annotated[
        str | None, typer.Option(help="`jsonl`: a JSON line for the start, each piece, and the end.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="With JSON: every token with its logprob and N alternatives."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Write a replay file, for `llamatui replay`. Measures every token, which takes time.",
            metavar="FILE",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --record write over a file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No numbers on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="More on stderr.")] = False,
) -> None:
    """Generate text, like llama2.c's run: same checkpoint, flags and seed give the same tokens.

    Example: llamatui generate -i "Once upon a time" -t 0.8 -s 42
    """
    if stream not in (None, "jsonl"):
        raise UsageError(f"--stream knows jsonl, found {stream!r}")
    if logprobs is not None and not (json or stream):
        raise UsageError("--logprobs needs --json or --stream jsonl")
    if force and record is None:
        raise UsageError("--force needs --record")
    output = Output(json, stream is not None, quiet, verbose)
    text = ""
    mode = "generate" if system is None else "chat"
    try:
        text = read_prompt(prompt, file)
        flags = {
            "tokenizer": tokenizer, "backend": backend, "threads": threads, "chat_format": chat_format,
            "temperature": temperature, "top_p": top_p, "seed": seed, "top_k": top_k, "min_p": min_p,
            "repeat_penalty": repeat_penalty, "context": context, "overflow": overflow,
        }  # fmt: skip
        run(
            loading.settings_from(model, **flags),
            text,
            system,
            n,
            max_tokens,
            stop or [],
            special,
            logprobs,
            output,
            Target(record, force) if record else None,
        )
    except LlamatuiError as error:
        if (json or stream) and not output.ended:
            from llamatui.app.result import failure_json

            output.end(failure_json(text, mode, error))
        raise
    except Interrupted:
        if (json or stream) and not output.ended:
            from llamatui.app.result import failure_json

            output.end(failure_json(text, mode))
        raise


def read_prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise UsageError("give the prompt by -i or by -f, not both")
    if file is not None and str(file) != "-":
        return read_text(file)
    return read_text(None) if prompt == "-" or file is not None else prompt or ""


@dataclass
class Output:
    """stdout is data: text as it comes, or JSON. stderr is narration."""

    json: bool
    jsonl: bool
    quiet: bool
    verbose: bool
    ended: bool = False

    def text(self, piece: str) -> None:
        if not (self.json or self.jsonl):
            sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()

    def event(self, kind: str, content: dict[str, Any]) -> None:
        if self.jsonl:
            print(dumps({"event": kind, **content}), flush=True)

    def end(self, content: dict[str, Any]) -> None:
        self.ended = True
        self.event("end", content)
        if self.json and not self.jsonl:
            print(dumps(content, indent=2 if sys.stdout.isatty() else None))

    def note(self, line: str, *, detail: bool = False) -> None:
        if not self.quiet and (self.verbose or not detail):
            print(line, file=sys.stderr)

    def warn(self, result: "Result", *warnings: str) -> None:
        """Adds to the result's warnings, and tells, those that are not among them."""
        for warning in warnings:
            if warning not in result.warnings:
                result.warnings.append(warning)
                self.note(f"warning: {warning}")


@dataclass(frozen=True, slots=True)
class Target:
    """Where `--record` writes."""

    path: Path
    force: bool


def run(
    settings: Settings,
    text: str,
    system: str | None,
    n: int | None,
    max_tokens: int | None,
    stops: list[str],
    special: bool,
    logprobs: int | None,
    output: Output,
    target: Target | None,
) -> None:
    """Loads, generates and prints; exits with 130 if it was interrupted."""
    sampling = loading.sampling(settings)  # a wrong value is told before a model is loaded
    overflow = loading.overflow_policy(settings, "stop")
    from llamatui.app.cli.interrupt import cancel_on_interrupt
    from llamatui.app.engine import Limits, Session
    from llamatui.app.replay import Recorder, Replay, check_target
    from llamatui.app.result import Result, backend_json, token_json
    from llamatui.app.sampler import Sampler
    from llamatui.app.text_stream import StopMatcher, stream_text

    if target:
        check_target(target.path, force=target.force)
    began = time.perf_counter()
    model = loading.load(settings)
    result = Result(text, "generate" if system is None else "chat")
    if output.json or output.jsonl:
        result.sha256 = model.sha256()  # now: the file may be gone later
    result.load_s = time.perf_counter() - began
    ids, stop_ids, keep = prompt_ids(model, text, system, special)
    result.prompt_ids = ids
    session = Session(model.backend, settings.context or None)
    room = None if overflow == "shift" else session.context
    max_new = new_token_limit(n, max_tokens, len(ids), room)
    measured = 0 if target and logprobs is None else logprobs
    limits = Limits(max_new, stop_ids, overflow, keep, measured)
    output.note(f"{model.path}: {describe(model)}", detail=True)
    output.note(f"tokenizer {model.tokenizer_path} ({model.tokenizer.format})", detail=True)
    if model.backend.preparing:
        output.note(model.backend.note, detail=True)
    sampler = Sampler(sampling)
    generation = session.start(ids, sampler, limits)
    if generation.dropped_tokens:
        output.warn(result, f"the prompt did not fit: {generation.dropped_tokens} tokens were dropped")
    elif len(ids) > session.context:
        output.warn(
            result,
            f"the prompt has {len(ids)} tokens, the context only {session.context}: nothing was generated",
        )
    elif max_new == 0 and max_tokens != 0:
        output.warn(
            result,
            f"the prompt has {len(ids)} tokens, which -n {n or DEFAULT_POSITIONS} leaves no room behind",
        )
    output.warn(result, *model.warnings)
    recorder = Recorder(generation, shown="" if system is not None else text, stops=stops) if target else None
    result.records = None if logprobs is None else []
    matcher = StopMatcher(stops)
    if output.jsonl:
        output.event("start", {**result.header(model), "prompt": text})
    if system is None:
        output.text(text)
    failure: LlamatuiError | None = None
    told_swap = None
    with cancel_on_interrupt(generation):
        try:
            for record, piece in stream_text(generation, model.tokenizer, matcher):
                if record and recorder:
                    recorder.add(record)
                result.text += piece
                output.text(piece)
                delta: dict[str, Any] = {"text": piece}
                if record and result.records is not None:
                    result.records.append(record)
                    delta["token"] = token_json(model.tokenizer, record)
                if generation.swap != told_swap:
                    told_swap = generation.swap
                    delta["backend"] = backend_json(session.backend, told_swap)
                output.event("delta", delta)
        except LlamatuiError as error:
            failure = error
    if target and recorder:
        try:
            step = recorder.step(result.text)
            Replay.of(model, [step]).write(target.path, force=target.force)
        except LlamatuiError as error:
            failure = failure or error
    result.stop_sequence = matcher.matched
    output.text("\n")
    output.warn(result, *model.warnings)  # some are known only now
    if swap := generation.swap:
        output.note(f"swapped from {swap.old} to {swap.new} at token {swap.at}", detail=True)
    if output.json or output.jsonl:
        output.end(result.as_json(model, sampler, generation, failure))
    output.note(summary(generation))
    if failure:
        raise failure
    if generation.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)


def prompt_ids(
    model: "LoadedModel", text: str, system: str | None, special: bool
) -> tuple[list[int], frozenset[int], int]:
    """(ids, ids that stop, leading ids that a shift keeps) of a plain prompt, or of a chat turn."""
    tokenizer = model.tokenizer
    if system is None:
        return model.encode_prompt(text, special=special), model.stop_ids, int(tokenizer.adds_bos)
    from llamatui.tokenizers.chat_formats import Message

    messages = [Message("system", system), Message("user", text)] if system else [Message("user", text)]
    form = model.chat_format
    return (
        form.render(tokenizer, messages),
        form.stop_ids(tokenizer) | model.stop_ids,
        form.system_length(tokenizer, messages),
    )


def new_token_limit(
    n: int | None, max_tokens: int | None, prompt_length: int, room: int | None
) -> int | None:
    """New tokens at most; None fills the context. `-n` counts forward passes from position 0, as in run.c.

    Args:
        room: Positions of the context, which a larger -n is cut to; None where the context shifts.
    """
    if n is None:
        n = DEFAULT_POSITIONS if max_tokens is None else 0
    limits = [] if max_tokens is None else [max_tokens]
    if n and (room is None or n <= room):
        limits.append(max(n - (prompt_length - 1), 0))
    return min(limits, default=None)


def describe(model: "LoadedModel") -> str:
    c = model.checkpoint.config
    return (
        f"{short_count(c.n_params)} parameters, {c.n_layers} layers, vocabulary {c.vocab_size}, "
        f"context {c.max_seq_len}, {model.backend.name} on {team(model.backend)}"
    )


def team(backend: "Backend") -> str:
    """How many threads run it, and whose."""
    from llamatui.backends.registry import KERNELS

    if backend.threads == 1 or backend.name not in KERNELS:
        return counted(backend.threads, "thread")
    from llamatui.backends.team import openmp

    return f"{backend.threads} {'OpenMP' if openmp() else 'Python'} threads"


def summary(generation: "Generation") -> str:
    times, backend, swap = generation.timings, generation.session.backend, generation.swap
    return (
        f"{len(generation.new_tokens)} tokens, {times.decode_tps:.1f} tok/s "
        f"(prompt {times.prefill_tokens} tokens, {times.prefill_tps:.1f} tok/s) · "
        f"{f'{swap.old}, then ' if swap else ''}{backend.name}, {counted(backend.threads, 'thread')} · "
        f"{generation.finish_reason}"
    )
