"""The models and tokenizers that `llamatui pull` knows by name.

Imported for shell completion and before the first paint, so it stays light.
"""

from dataclasses import dataclass
from difflib import get_close_matches

LLAMA_3_2_LICENCE = "Llama 3.2 Community"


@dataclass(kw_only=True, eq=False)
class Entry:
    name: str
    repo: str
    file: str = ""
    """In the repository; "" for a whole repository of safetensors."""
    size: int
    """Bytes to download."""
    licence: str
    gated: bool = False
    """Whether its licence must be accepted on the hub first."""
    about: str

    @property
    def offer(self) -> str:
        """What fetching it means, in a few words."""
        return f"{self.name} ({self.size / 1e6:.1f} MB from huggingface.co)"


@dataclass(kw_only=True, eq=False)
class Tokenizer(Entry):
    """A tokenizer file on the hub, for models that come without one."""

    vocab_size: int


@dataclass(kw_only=True, eq=False)
class Model(Entry):
    parameters: int
    tokenizer: Tokenizer | None = None
    """Where the repository has none."""


LLAMA2 = Tokenizer(
    name="llama2-tokenizer",
    repo="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    file="tokenizer.model",
    vocab_size=32000,
    size=499_723,
    licence="Llama 2 Community",
    about="Tokenizer of Llama 2, TinyLlama and llama2.c's stories.",
)

LLAMA3 = Tokenizer(
    name="llama3-tokenizer",
    repo="meta-llama/Llama-3.2-1B",
    file="original/tokenizer.model",
    vocab_size=128256,
    size=2_183_982,
    licence=LLAMA_3_2_LICENCE,
    gated=True,
    about="Tokenizer of Llama 3, 3.1 and 3.2.",
)

TOKENIZERS = (LLAMA2, LLAMA3)

MODELS = (
    Model(
        name="stories260K",
        repo="karpathy/tinyllamas",
        file="stories260K/stories260K.bin",
        parameters=260_032,
        size=1_062_767,
        licence="MIT",
        about="Tiny stories by a tiny model: instant, and barely English.",
    ),
    Model(
        name="stories15M",
        repo="karpathy/tinyllamas",
        file="stories15M.bin",
        parameters=15_191_712,
        size=60_816_028 + LLAMA2.size,
        licence="MIT",
        about="Short stories for small children.",
        tokenizer=LLAMA2,
    ),
    Model(
        name="stories42M",
        repo="karpathy/tinyllamas",
        file="stories42M.bin",
        parameters=41_689_600,
        size=167_020_572 + LLAMA2.size,
        licence="MIT",
        about="Stories that hold together for a page.",
        tokenizer=LLAMA2,
    ),
    Model(
        name="stories110M",
        repo="karpathy/tinyllamas",
        file="stories110M.bin",
        parameters=109_529_856,
        size=438_381_596 + LLAMA2.size,
        licence="MIT",
        about="The best of llama2.c's storytellers.",
        tokenizer=LLAMA2,
    ),
    Model(
        name="SmolLM2-135M-Instruct",
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        size=273_000_000,
        licence="Apache 2.0",
        about="Small and quick to chat with.",
    ),
    Model(
        name="SmolLM2-360M-Instruct",
        repo="HuggingFaceTB/SmolLM2-360M-Instruct",
        parameters=361_821_120,
        size=728_000_000,
        licence="Apache 2.0",
        about="Small, with better answers.",
    ),
    Model(
        name="TinyLlama-1.1B-Chat",
        repo="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        parameters=1_100_048_384,
        size=2_203_000_000,
        licence="Apache 2.0",
        about="Chat in the shape of Llama 2.",
    ),
    Model(
        name="Llama-3.2-1B-Instruct",
        repo="meta-llama/Llama-3.2-1B-Instruct",
        parameters=1_235_814_400,
        size=2_481_000_000,
        licence=LLAMA_3_2_LICENCE,
        gated=True,
        about="Meta's smallest chat model.",
    ),
    Model(
        name="Llama-3.2-3B-Instruct",
        repo="meta-llama/Llama-3.2-3B-Instruct",
        parameters=3_212_749_824,
        size=6_435_000_000,
        licence=LLAMA_3_2_LICENCE,
        gated=True,
        about="The best chat here; wants 8 GB of memory.",
    ),
    Model(
        name="Llama-3.2-1B",
        repo="meta-llama/Llama-3.2-1B",
        parameters=1_235_814_400,
        size=2_481_000_000,
        licence=LLAMA_3_2_LICENCE,
        gated=True,
        about="Goes on from any text; not for chat.",
    ),
    Model(
        name="Llama-3.2-3B",
        repo="meta-llama/Llama-3.2-3B",
        parameters=3_212_749_824,
        size=6_435_000_000,
        licence=LLAMA_3_2_LICENCE,
        gated=True,
        about="Goes on from any text, better.",
    ),
)

_BY_NAME: dict[str, Model | Tokenizer] = {entry.name.casefold(): entry for entry in (*MODELS, *TOKENIZERS)}


def find(name: str) -> Model | Tokenizer | None:
    """The entry of this name, in any case."""
    return _BY_NAME.get(name.casefold())


def tokenizer_for(vocab_size: int) -> Tokenizer | None:
    """The tokenizer that has this many tokens."""
    return next((entry for entry in TOKENIZERS if entry.vocab_size == vocab_size), None)


def names() -> list[str]:
    return [entry.name for entry in (*MODELS, *TOKENIZERS)]


def near(name: str, known: list[str]) -> list[str]:
    """Up to three of `known` that are spelt like `name`."""
    spelling = {candidate.casefold(): candidate for candidate in known}
    return [spelling[match] for match in get_close_matches(name.casefold(), spelling, n=3, cutoff=0.5)]
