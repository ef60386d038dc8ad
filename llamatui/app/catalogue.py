"""The models and tokenizers that `llamatui pull` knows by name.

Imported for shell completion, so it stays light.
"""

from dataclasses import dataclass
from difflib import get_close_matches

LLAMA_3_2_LICENCE = "Llama 3.2 Community"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer file on the hub, for models that come without one."""

    name: str
    repo: str
    file: str
    vocab_size: int
    size: int
    """Bytes to download."""
    gated: bool
    licence: str
    about: str


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    repo: str
    parameters: int
    size: int
    """Bytes to download."""
    licence: str
    about: str
    gated: bool = False
    """Whether its licence must be accepted on the hub first."""
    file: str = ""
    """A .bin in the repository; "" for a repository of safetensors."""
    tokenizer: Tokenizer | None = None
    """Where the repository has none."""


LLAMA2 = Tokenizer(
    "llama2-tokenizer",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tokenizer.model",
    32000,
    499_723,
    gated=False,
    licence="Llama 2 Community",
    about="Tokenizer of Llama 2, TinyLlama and llama2.c's stories.",
)

LLAMA3 = Tokenizer(
    "llama3-tokenizer",
    "meta-llama/Llama-3.2-1B",
    "original/tokenizer.model",
    128256,
    2_183_982,
    gated=True,
    licence=LLAMA_3_2_LICENCE,
    about="Tokenizer of Llama 3, 3.1 and 3.2.",
)

TOKENIZERS = (LLAMA2, LLAMA3)

MODELS = (
    Model(
        "stories260K",
        "karpathy/tinyllamas",
        260_032,
        1_062_767,
        "MIT",
        "Tiny stories by a tiny model: instant, and barely English.",
        file="stories260K/stories260K.bin",
    ),
    Model(
        "stories15M",
        "karpathy/tinyllamas",
        15_191_712,
        60_816_028 + LLAMA2.size,
        "MIT",
        "Short stories for small children.",
        file="stories15M.bin",
        tokenizer=LLAMA2,
    ),
    Model(
        "stories42M",
        "karpathy/tinyllamas",
        41_689_600,
        167_020_572 + LLAMA2.size,
        "MIT",
        "Stories that hold together for a page.",
        file="stories42M.bin",
        tokenizer=LLAMA2,
    ),
    Model(
        "stories110M",
        "karpathy/tinyllamas",
        109_529_856,
        438_381_596 + LLAMA2.size,
        "MIT",
        "The best of llama2.c's storytellers.",
        file="stories110M.bin",
        tokenizer=LLAMA2,
    ),
    Model(
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        134_515_008,
        273_000_000,
        "Apache 2.0",
        "Small and quick to chat with.",
    ),
    Model(
        "SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        361_821_120,
        728_000_000,
        "Apache 2.0",
        "Small, with better answers.",
    ),
    Model(
        "TinyLlama-1.1B-Chat",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        1_100_048_384,
        2_203_000_000,
        "Apache 2.0",
        "Chat in the shape of Llama 2.",
    ),
    Model(
        "Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        1_235_814_400,
        2_481_000_000,
        LLAMA_3_2_LICENCE,
        "Meta's smallest chat model.",
        gated=True,
    ),
    Model(
        "Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        3_212_749_824,
        6_435_000_000,
        LLAMA_3_2_LICENCE,
        "The best chat here; wants 8 GB of memory.",
        gated=True,
    ),
    Model(
        "Llama-3.2-1B",
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        2_481_000_000,
        LLAMA_3_2_LICENCE,
        "Goes on from any text; not for chat.",
        gated=True,
    ),
    Model(
        "Llama-3.2-3B",
        "meta-llama/Llama-3.2-3B",
        3_212_749_824,
        6_435_000_000,
        LLAMA_3_2_LICENCE,
        "Goes on from any text, better.",
        gated=True,
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
