"""`llamatui chat` without a terminal: a line in, an answer out."""

import sys
from collections.abc import Iterator

import typer

from llamatui.app.cli import loading
from llamatui.app.cli.interrupt import cancel_on_interrupt
from llamatui.app.cli.terminal import INTERRUPTED, decode, dumps, printable
from llamatui.app.config import Settings
from llamatui.app.conversation import Conversation
from llamatui.app.engine import Limits
from llamatui.app.result import Result
from llamatui.app.sampler import Sampler
from llamatui.app.text_stream import StopMatcher, stream_text


def repl(settings: Settings, system: str | None, first: str = "", *, json: bool = False) -> None:
    """Answers each line of stdin on stdout, in one conversation, until stdin ends. Skips empty lines.

    Args:
        system: System prompt; None takes the model's own.
        first: Asked before anything is read.
        json: Print a line of JSON for each answer, of the schema that `generate --json` prints.
    """
    sampler = Sampler(loading.sampling(settings))
    limits = Limits(overflow=loading.overflow_policy(settings, "shift"))
    chat = Conversation(loading.load(settings), system, context=settings.context or None)
    sha256 = chat.model.sha256() if json else ""
    show = printable if sys.stdout.isatty() else str
    told: list[str] = []
    for question in questions(first):
        if not question.strip():
            continue
        chat.ask(question)
        generation = chat.start(sampler, limits)
        result = Result(question, "chat", sha256=sha256, prompt_ids=generation.prompt)
        with cancel_on_interrupt(generation):
            for _, piece in stream_text(generation, chat.model.tokenizer, StopMatcher(())):
                result.text += piece
                if not json:
                    sys.stdout.write(show(piece))
                    sys.stdout.flush()
        result.warnings = [warning for warning in chat.model.warnings if warning not in told]
        told += result.warnings
        sys.stdout.write(dumps(result.as_json(chat.model, sampler, generation)) + "\n" if json else "\n")
        sys.stdout.flush()
        chat.finish(generation.new_tokens, result.text)
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if generation.dropped_tokens:
            print(f"the context is full: {generation.dropped_tokens} tokens were forgotten", file=sys.stderr)
        if generation.finish_reason == "context":
            print("the context is full: the answer ends here", file=sys.stderr)
        if generation.finish_reason == "cancelled":
            raise typer.Exit(INTERRUPTED)


def questions(first: str) -> Iterator[str]:
    yield first
    for line in sys.stdin.buffer:
        yield decode(line).rstrip("\r\n")
