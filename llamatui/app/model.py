"""A model ready to run: checkpoint, tokenizer, backend and chat format."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.registry import DEFAULT, create_backend
from llamatui.errors import ModelError, UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, ChatFormat, chat_format_for
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer


@dataclass
class LoadedModel:
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    tokenizer_path: Path
    backend: Backend
    chat_format_name: str
    """Asked for by the user; "" leaves it to the file and the vocabulary."""

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a text: the file's, the vocabulary's, and BOS, with which another text begins."""
        bos = {self.tokenizer.bos_id} - {-1}
        return self.tokenizer.eos_ids | bos | frozenset(self.checkpoint.config.eos_ids)

    def encode_prompt(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text to go on from: BOS first where the vocabulary begins texts with it, or nothing else.

        Raises:
            UsageError: The text is empty, and the vocabulary has no BOS to begin with.
        """
        ids = self.tokenizer.encode(text, bos=self.tokenizer.adds_bos, special=special)
        if not ids and self.tokenizer.bos_id < 0:
            raise UsageError("this model cannot begin from nothing", "give it a first word (-i)")
        return ids or [self.tokenizer.bos_id]

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The format to chat in.

        Raises:
            ModelError: Neither the user, the file nor the vocabulary says, or the file says an unknown one.
        """
        known = self.checkpoint.config.chat_format
        if known and not self.chat_format_name and known not in CHAT_FORMATS:
            raise ModelError(
                f"{self.path}: the chat format {known!r} of this file is not known here",
                f"choose one: --chat-format {' | '.join(CHAT_FORMATS)}",
            )
        return chat_format_for(self.tokenizer, self.chat_format_name or known)


def load_model(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    threads: int | None = None,
    chat_format: str = "",
    progress: Callable[[str], None] = lambda step: None,
) -> LoadedModel:
    """Opens a model file and what belongs to it.

    Args:
        tokenizer: Its file; None looks next to the model, then among the user's own by vocabulary size.
        backend: Its name; None means the default one.
        threads: None means one per physical core.
        progress: Told what is being done, in a few words.

    Raises:
        ModelError: A file is missing, damaged, or does not fit the other.
    """
    progress("reading the header")
    checkpoint = Checkpoint(path)
    config = checkpoint.config
    progress("loading the tokenizer")
    found = (
        Path(tokenizer)
        if tokenizer
        else find_tokenizer(checkpoint.path, config.vocab_size, user_tokenizers())
    )
    if found is None:
        raise ModelError(
            f"{checkpoint.path}: no tokenizer of {config.vocab_size} tokens is next to the model",
            "name its file: -z tokenizer.model (or .bin, .json)",
        )
    loaded = load_tokenizer(found, config.vocab_size)
    progress("preparing the backend")
    return LoadedModel(
        checkpoint, loaded, found, create_backend(backend or DEFAULT, checkpoint, threads), chat_format
    )


def user_tokenizers() -> Path:
    """Folder of the user's own tokenizers, for models that come without one."""
    return user_data_path("llamatui", appauthor=False) / "tokenizers"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and time of change."""
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    store = user_cache_path("llamatui", appauthor=False) / "sha256.json"
    try:
        known = json.loads(store.read_text("utf-8"))
        if isinstance(known, dict) and isinstance(known.get(key), str):
            return str(known[key])
    except (OSError, ValueError):
        known = {}
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        temporary = store.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**(known if isinstance(known, dict) else {}), key: digest}), "utf-8")
        temporary.replace(store)
    except OSError:
        pass  # only a cache: a read-only home costs time, not the result
    return digest
