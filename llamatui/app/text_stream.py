"""Text of a generation as it grows: whole characters only, and never a part of a stop sequence."""

from collections.abc import Iterator, Sequence

from llamatui.app.engine import Generation, TokenRecord
from llamatui.tokenizers.base import StreamDecoder, Tokenizer


class StopMatcher:
    """Passes text through, holding back what may become a stop sequence."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """What may be shown now. Nothing more comes once `matched` is set."""
        if self.matched is not None:
            return ""
        held = self._held + text
        found = min(((at, stop) for stop in self._stops if (at := held.find(stop)) >= 0), default=None)
        if found:
            self.matched = found[1]
            self._held = ""
            return held[: found[0]]
        # The longest end of the text that some stop sequence starts with.
        longest = max(map(len, self._stops), default=1) - 1
        keep = next(
            (
                n
                for n in range(min(longest, len(held)), 0, -1)
                if any(s.startswith(held[-n:]) for s in self._stops)
            ),
            0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, once the text has ended."""
        held, self._held = self._held, ""
        return held


def stream_text(
    generation: Generation, tokenizer: Tokenizer, matcher: StopMatcher
) -> Iterator[tuple[TokenRecord | None, str]]:
    """Runs `generation` and yields each record with the text that it completed.

    Ends the generation when `matcher` finds a stop sequence. Text left over at the end comes with None.
    """
    decoder = StreamDecoder(tokenizer, after=generation.prompt[-1])
    for record in generation:
        yield record, matcher.push(decoder.push(record.id))
        if matcher.matched is not None:
            generation.stop()
    if rest := matcher.push(decoder.flush()) + matcher.flush():
        yield None, rest
