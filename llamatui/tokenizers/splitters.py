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

QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral Nemo's own; llama.cpp has an approximation without classes of upper and lower case."""

SEED_CODER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
"""Letters with upper and lower case, of one version of Unicode."""

_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

SPLIT_PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (LLAMA3_PATTERN,)
    ),
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "olmo", "trillion"), (GPT2_PATTERN,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), (ONE_DIGIT, GPT2_PATTERN)
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (QWEN2_PATTERN,)),
    "tekken": (TEKKEN_PATTERN,),
    "seed-coder": (SEED_CODER_PATTERN,),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"(?<!\s)\s++$",  # theirs is \s+$, which takes time by the square of what it does not match
        _CJK,
        DIGITS,
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, ONE_DIGIT),
    # What llama.cpp does with files that name no pre-tokenizer.
    "default": (r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, DIGITS, r"[0-9]{3}"),
}
"""By name, also those that GGUF files use in `tokenizer.ggml.pre`. Source: `llm_tokenizer_bpe` and
`llama_vocab::impl::load` in llama.cpp's `src/llama-vocab.cpp`, which also quotes the originals."""

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
