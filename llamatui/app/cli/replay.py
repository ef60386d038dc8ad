"""`llamatui replay`: a recorded text again, as it was or computed anew."""

import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamatui.app.cli import loading, options
from llamatui.app.cli.terminal import Interrupted, counted, dumps, printable
from llamatui.errors import LlamatuiError, ModelError, UsageError

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel
    from llamatui.app.replay import Replay
    from llamatui.app.replay_check import Difference, Verdict

SCHEMA = "llamatui.verify/1"
WORDS_PER_SECOND = 5  # as one reads


def replay(
    file: Annotated[Path, typer.Argument(help="What `generate --record` wrote.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="With --verify: the model that it was recorded with; default: the one of its name.",
            autocompletion=options.complete_model,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute it again, and tell the first token that differs.")
    ] = False,
    tokenizer: options.Tokenizer = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="numba (fp32), q8_0 (int8) or numpy; default: what it was recorded with.",
            autocompletion=options.complete_backend,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; default: as many as when it was recorded.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Play a recorded text back, or verify that it comes out the same: then exit code 0, else 1.

    Example: llamatui generate -i Once --record once.json; llamatui replay once.json --verify
    """
    if not verify:
        given = {"MODEL": model, "-z": tokenizer, "--backend": backend, "--threads": threads, "--json": json}
        if wrong := [name for name, value in given.items() if value not in (None, False)]:
            raise UsageError(f"{wrong[0]} needs --verify", "llamatui replay FILE plays the text back")
        from llamatui.app.replay import Replay

        play(Replay.read(file))
        return
    try:
        verdict, recorded, loaded = compute(file, model, tokenizer, backend, threads)
    except (LlamatuiError, Interrupted) as error:
        if json:
            from llamatui.app.result import error_json

            told = error if isinstance(error, LlamatuiError) else None
            print(dumps({"schema": SCHEMA, "identical": None, "error": error_json(told)}))
        raise
    if json:
        content = verdict_json(verdict, recorded, loaded)
        print(dumps(content, indent=2 if sys.stdout.isatty() else None))
    else:
        for line in verdict_lines(verdict, recorded, loaded):
            print(printable(line))
    if not verdict.identical:
        raise typer.Exit(1)


def play(recorded: "Replay") -> None:
    """To a terminal word by word, as one reads; else at once."""
    slowly = sys.stdout.isatty()
    for step in recorded.steps:
        if slowly:
            sys.stdout.write(printable(step.shown))
            for word in re.findall(r"\s*\S+\s*", step.text) or [step.text]:
                sys.stdout.write(printable(word))
                sys.stdout.flush()
                time.sleep(1 / WORDS_PER_SECOND)
        else:
            sys.stdout.write(step.shown + step.text)
    sys.stdout.write("\n")


def compute(
    file: Path, model: str | None, tokenizer: Path | None, backend: str | None, threads: int | None
) -> "tuple[Verdict, Replay, LoadedModel]":
    from llamatui.app.replay import Replay

    recorded = Replay.read(file)
    settings = loading.settings_from(
        recorded.model["name"] if model is None else model,
        tokenizer=tokenizer,
        backend=backend or recorded.steps[0].backend,
        # No file makes more threads than there are cores.
        threads=threads or min(recorded.backend["threads"], os.cpu_count() or 1),
    )
    try:
        loaded = loading.load(settings)
    except ModelError as error:
        if model is None:  # a name that was not given here says nothing without its file
            error.hint = f"{error.hint}; or name its file: llamatui replay {file} --verify MODEL".lstrip("; ")
        raise
    from llamatui.app.replay_check import verify

    return verify(recorded, loaded, backend=backend), recorded, loaded


def verdict_json(verdict: "Verdict", recorded: "Replay", model: "LoadedModel") -> dict[str, Any]:
    largest = verdict.largest
    difference = verdict.difference and {
        **asdict(verdict.difference),
        "recorded_text": token_text(model, verdict.difference.recorded),
        "computed_text": token_text(model, verdict.difference.computed),
    }
    return {
        "schema": SCHEMA,
        "identical": verdict.identical,
        "tokens": verdict.tokens,
        "steps": len(recorded.steps),
        "difference": difference,
        "largest_logprob_difference": largest and {**asdict(largest), "difference": largest.difference},
        "backends": {"recorded": backends(recorded), "computed": verdict.backends},
        "notes": verdict.notes,
        "error": None,
    }


def backends(recorded: "Replay") -> list[str]:
    """Names of those that it was recorded with, in order."""
    names = [
        name
        for step in recorded.steps
        for name in (step.backend, *(change.backend for change in step.changes))
    ]
    return list(dict.fromkeys(name for name in names if name))


def verdict_lines(verdict: "Verdict", recorded: "Replay", model: "LoadedModel") -> list[str]:
    before, now = backends(recorded), verdict.backends
    lines = [f"note: {note}" for note in verdict.notes]
    if now and now != before:
        lines.append(f"note: recorded with {' and '.join(before)}, computed with {' and '.join(now)}")
    if verdict.difference is None:
        lines.append(f"identical: {counted(verdict.tokens, 'token')}")
    else:
        lines += difference_lines(verdict.difference, model)
        lines.append(f"  identical before it: {counted(verdict.tokens, 'token')}")
    if largest := verdict.largest:
        lines.append(
            f"largest difference of a logprob: {largest.difference:.3g}"
            + (f", step {largest.step}, token {largest.index}" if largest.difference else "")
        )
    return lines


def difference_lines(found: "Difference", model: "LoadedModel") -> list[str]:
    """Where it is, and how near it was."""
    recorded = told(model, found.recorded, found.recorded_end)
    computed = told(model, found.computed, found.computed_end)
    lines = [f"differs: step {found.step}, token {found.index}: recorded {recorded}, computed {computed}"]
    if found.logprob_now is not None:
        then = "" if found.logprob_then is None else f"{found.logprob_then:.6f} when recorded, "
        lines.append(f"  logprob of the recorded token: {then}{found.logprob_now:.6f} now")
    if found.computed_logprob is not None:
        lines.append(f"  logprob of the computed token: {found.computed_logprob:.6f}")
    if found.nudge is not None:
        lines.append(f"  a random number {found.nudge:.2g} away chooses the recorded token")
    elif found.recorded is not None and found.logprob_now is not None:
        lines.append("  no random number chooses the recorded token with these settings")
    return lines


def told(model: "LoadedModel", token: int | None, end: str | None) -> str:
    if token is None:
        return f"the end ({end})"
    return f"{token} {token_text(model, token)!r}" + (f", which ends it ({end})" if end else "")


def token_text(model: "LoadedModel", token: int | None) -> str | None:
    return None if token is None else model.tokenizer.decode_bytes(token).decode("utf-8", "replace")
