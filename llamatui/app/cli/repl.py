"""`llamatui chat` without a terminal: a line in, an answer out."""

import sys

import typer

from llamatui.app.cli import loading
from llamatui.app.cli.interrupt import cancel_on_interrupt
from llamatui.app.cli.terminal import INTERRUPTED, decode, printable
from llamatui.app.config import Settings
from llamatui.app.conversation import Conversation
from llamatui.app.engine import Limits
from llamatui.app.sampler import Sampler
from llamatui.app.text_stream import StopMatcher, stream_text


def repl(settings: Settings, system: str | None) -> None:
    """Answers each line of stdin on stdout, in one conversation, until stdin ends. Skips empty lines.

    Args:
        system: System prompt; None takes the model's own.
    """
    sampler = Sampler(loading.sampling(settings))
    limits = Limits(overflow=loading.overflow_policy(settings, "shift"))
    chat = Conversation(loading.load(settings), system, context=settings.context or None)
    show = printable if sys.stdout.isatty() else str
    for line in sys.stdin.buffer:
        question = decode(line).rstrip("\r\n")
        if not question.strip():
            continue
        chat.ask(question)
        generation = chat.start(sampler, limits)
        answer = ""
        with cancel_on_interrupt(generation):
            for _, piece in stream_text(generation, chat.model.tokenizer, StopMatcher(())):
                answer += piece
                sys.stdout.write(show(piece))
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        chat.finish(generation.new_tokens, answer)
        if generation.dropped_tokens:
            print(f"the context is full: {generation.dropped_tokens} tokens were forgotten", file=sys.stderr)
        if generation.finish_reason == "context":
            print("the context is full: the answer ends here", file=sys.stderr)
        if generation.finish_reason == "cancelled":
            raise typer.Exit(INTERRUPTED)
