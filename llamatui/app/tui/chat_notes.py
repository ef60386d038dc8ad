"""What a reader would wonder about at the end of an answer."""

from collections.abc import Iterator
from typing import Literal

from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.room import swap_notice
from llamatui.app.tui.runner import Run


def notes_on(run: Run, *, more: bool) -> Iterator[tuple[str, Literal["note", "warning", "error"]]]:
    """(text, kind) of each. `more`: it was to go on with an answer that had begun."""
    if run.error is not None:
        message, hint = explain(run.error)
        yield f"{message}. {hint}" if hint else message, "error"
    generation = run.generation
    if generation is None:
        return
    said, context = bool(run.complete_pieces()), generation.session.context
    if notice := swap_notice(generation):
        yield notice, "note"
    if dropped := generation.dropped_tokens:
        yield f"The context of {context} tokens was full: the oldest {dropped} are forgotten.", "warning"
    if generation.finish_reason == "context":
        yield (
            f"The context of {context} tokens is full. /clear begins a new chat; "
            "--overflow shift forgets the oldest words instead.",
            "warning",
        )
    elif generation.finish_reason == "eos" and not said:
        yield "The model has nothing to add." if more else "The model said nothing.", "note"
    elif generation.finish_reason == "cancelled" and not said and not more:
        yield "Stopped before the first word.", "note"
