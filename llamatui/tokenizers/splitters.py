r"""How text is cut before BPE merges: regular expressions as data, run by PCRE2.

A splitter is a sequence of patterns. Each cuts every piece that the one before left into its matches and
what lies between them; no merge crosses a cut. Lookahead ends at a piece's end, as in Hugging Face's
`Sequence` of pre-tokenizers.

PCRE2 and Rust's regex crate (tiktoken) agree on `\p{L}`, `\p{N}` and case folding for every code point, but
PCRE2's `\s` also matches U+180E, which has not been white space since Unicode 6.3. `White_Space` is what
the others mean.
"""

import re
from collections.abc import Sequence

from llamatui.errors import TokenizerError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: Meta's llama-models, `models/llama3/tokenizer.py`."""

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Source: OpenAI's gpt-2, `src/encoder.py`."""

ONE_DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"

SPLIT_PATTERNS: dict[str, tuple[str, ...]] = {
    "llama3": (LLAMA3_PATTERN,),
    "llama-bpe": (LLAMA3_PATTERN,),
    "gpt-2": (GPT2_PATTERN,),
    "smollm": (ONE_DIGIT, GPT2_PATTERN),
    # What llama.cpp does with files that name no pre-tokenizer.
    "default": (r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, DIGITS, r"[0-9]{3}"),
}
"""By name, also those that GGUF files use in `tokenizer.ggml.pre`."""

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_WHITE_SPACE = {"s": r"\p{White_Space}", "S": r"\P{White_Space}"}


def in_pcre2(pattern: str) -> str:
    r"""The pattern with `\s` and `\S` meaning Unicode's White_Space."""
    return _ESCAPE.sub(lambda escape: _WHITE_SPACE.get(escape[1], escape[0]), pattern)


class Splitter:
    """Cuts text by `patterns`. Nothing is lost: the pieces join to the text."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises TokenizerError: a pattern is not one that PCRE2 understands."""
        self.patterns = tuple(patterns)
        import pcre2

        self._compiled = []
        for pattern in patterns:
            meant = in_pcre2(pattern)
            try:
                # The second half takes what lies between two matches. Possessive, or it overflows the stack.
                self._compiled.append(pcre2.compile(f"(?:{meant})|(?:(?!{meant})(?s:.))++"))
            except pcre2.PatternError as error:
                raise TokenizerError(f"expected a split pattern, found {pattern!r}: {error}") from None

    def split(self, text: str) -> list[str]:
        """Pieces of `text`, which must be valid Unicode (no surrogates).

        Raises:
            TokenizerError: PCRE2 gave up on a pattern of a tokenizer file, or it matched the empty text.
        """
        import pcre2

        pieces = [text]
        for pattern in self._compiled:
            # `group()` and not `span()`: the library counts characters from the start for each span.
            try:
                pieces = [
                    part for piece in pieces for match in pattern.finditer(piece) if (part := match.group())
                ]
            except pcre2.LibraryError as error:
                raise TokenizerError(
                    f"expected to split the text by {pattern.pattern[:40]!r}: {error}"
                ) from None
        if sum(map(len, pieces)) != len(text):
            raise TokenizerError("expected split patterns that match text, found one that matches nothing")
        return pieces
