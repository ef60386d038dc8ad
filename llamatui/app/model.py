"""A model ready to run: checkpoint, tokenizer, backend and chat format."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatui.app import catalogue, store
from llamatui.app.file_hash import file_sha256
from llamatui.app.gguf_cache import converted, is_gguf
from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.registry import create_backend, start_backend
from llamatui.errors import ContextOverflowError, ModelError, TokenizerMissingError, UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, ChatFormat, chat_format_for, chat_format_named
from llamatui.tokenizers.chat_templates import UNKNOWN_FORMAT, default_system, format_of, template_text
from llamatui.tokenizers.hf_json import companion_config
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from llamatui.app.conversation import Conversation


@dataclass
class LoadedModel:
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    tokenizer_path: Path
    _backend: Backend
    threads: int | None
    """Asked for by the user; None leaves it to the machine."""
    chat_format_name: str
    """Asked for by the user; "" leaves it to the file and the vocabulary."""

    @property
    def backend(self) -> Backend:
        """The fastest that is ready. Sessions begin with it, and take later ones over by themselves."""
        self._backend = self._backend.latest  # the one before is not held any longer
        return self._backend

    def switch(self, backend: Backend) -> None:
        """Lets `backend` take over, also in generations that are under way: see `Backend.replacement`."""
        old = self.backend
        if backend is not old:
            backend.replacement = None  # it may have been replaced before; there must be no circle
            old.replacement = backend

    @property
    def warnings(self) -> list[str]:
        """Why it runs slower than it could, and what to do about it.

        Complete only after the first step: OpenMP says then how many threads there are.
        """
        backend = self.backend
        found = [backend.note] if backend.note and not backend.preparing else []
        if self.threads and backend.threads < self.threads:
            found.append(f"{self.threads} threads asked for, {backend.threads} available")
        return found

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def name(self) -> str:
        return self.path.stem

    def sha256(self, check: Callable[[], None] = lambda: None) -> str:
        """Of the file that was opened: see `file_sha256`."""
        return file_sha256(self.path, check, self.checkpoint.opened)

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
        """The format to chat in: the user's, the file's, the tokenizer's, or else the vocabulary's.

        Raises:
            ModelError: None of them says, or the first to say names an unknown one; or it is the bundled one.
        """
        named = self.chat_format_name or self.checkpoint.config.chat_format
        if not named and self._chat_template:
            named = format_of(self._chat_template) or UNKNOWN_FORMAT
        if not named and self.path == store.BUNDLED.path:
            store.refuse_chat()  # its vocabulary looks like Llama 2's
        if named not in CHAT_FORMATS and not self.chat_format_name and named:
            raise ModelError(
                f"{self.path}: the chat format of this model is not known here",
                f"choose the one that is nearest: --chat-format {' | '.join(CHAT_FORMATS)}",
            )
        return chat_format_for(self.tokenizer, named)

    @property
    def default_system(self) -> str:
        """The system prompt that the model's own chat template begins with; "" where it has none."""
        return default_system(self._chat_template)

    @cached_property
    def _chat_template(self) -> str:
        """In the configuration that lies beside the tokenizer; "" where none does."""
        return template_text(companion_config(self.tokenizer_path).get("chat_template"))

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """Pieces of the text that the model puts behind `prompt`, as they come.

        Args:
            max_tokens: None fills the context.
            stop: A text that ends it, or several.
            sampling: temperature, top_p, top_k, min_p, repeat_penalty, seed: see
                `llamatui.app.sampling.Sampling`.

        Raises:
            UsageError: A value out of its range.
            ContextOverflowError: The prompt does not fit the context.
        """
        from llamatui.app.engine import Limits, Session
        from llamatui.app.sampler import Sampler
        from llamatui.app.sampling import Sampling
        from llamatui.app.text_stream import StopMatcher, stream_text

        limits = Limits(max_new_tokens=max_tokens, stop_ids=self.stop_ids)
        ids = self.encode_prompt(prompt)
        if len(ids) > self.checkpoint.config.max_seq_len:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, the context only {self.checkpoint.config.max_seq_len}",
                "shorten the prompt",
            )
        stops = [stop] if isinstance(stop, str) else stop
        generation = Session(self.backend).start(ids, Sampler(Sampling(**sampling)), limits)
        for _, piece in stream_text(generation, self.tokenizer, StopMatcher(stops)):
            yield piece

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The text that the model puts behind `prompt`; options as for `stream`."""
        return "".join(self.stream(prompt, **options))

    def chat(self, system: str | None = None, **sampling: Any) -> "Conversation":
        """A conversation: `.send(text)` gives the answer, `.stream(text)` its pieces.

        Args:
            system: None takes the model's own, "" none.
            sampling: As for `stream`.

        Raises:
            ModelError: The model has no chat format.
        """
        from llamatui.app.conversation import Conversation
        from llamatui.app.sampling import Sampling

        return Conversation(self, system, sampling=Sampling(**sampling))


def load_model(
    path: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    threads: int | None = None,
    chat_format: str = "",
    progress: Callable[[str], None] = lambda step: None,
) -> LoadedModel:
    """Opens a model file and what belongs to it.

    Args:
        path: A `.bin` file, a model's name, or a GGUF file, which is converted once; None means the model
            that comes with llamatui.
        tokenizer: Its file; None looks next to the model, in the current folder, then among the user's own by
            vocabulary size.
        backend: Its name, which waits for it to be compiled if it must; None means the default one, or
            numpy until that is ready.
        threads: None means one per physical core.
        progress: Told what is being done, in a few words.

    Raises:
        UsageError: No chat format is called so.
        ModelError: A file is missing, damaged, or does not fit the other.
        TokenizerMissingError: No tokenizer was found.
    """
    if chat_format:
        chat_format_named(chat_format)
    progress("reading the header")
    checkpoint = open_checkpoint(store.bundled() if path is None else path, progress)
    progress("loading the tokenizer")
    found = Path(tokenizer) if tokenizer else needed_tokenizer(checkpoint)
    loaded = load_tokenizer(found, checkpoint.config.vocab_size)
    progress("preparing the backend")
    engine = (
        create_backend(backend, checkpoint, threads, progress)
        if backend
        else start_backend(checkpoint, threads)
    )
    return LoadedModel(checkpoint, loaded, found, engine, threads, chat_format)


def open_checkpoint(
    path: str | os.PathLike[str], progress: Callable[[str], None] = lambda step: None
) -> Checkpoint:
    """The checkpoint that a path or a model's name means.

    Raises:
        ModelError: There is none, or it is damaged.
    """
    found = store.resolve(os.fspath(path))
    return Checkpoint(converted(found, progress) if is_gguf(found) else found)


def tokenizer_of(checkpoint: Checkpoint) -> Path | None:
    """The tokenizer file that belongs to a model, wherever it is; None where there is none."""
    vocab_size = checkpoint.config.vocab_size
    return find_tokenizer(checkpoint.path, vocab_size, *current_folder(), own=store.tokenizers_folder())


def current_folder() -> list[Path]:
    """Nothing where it has been deleted."""
    try:
        return [Path.cwd()]
    except OSError:
        return []


def needed_tokenizer(checkpoint: Checkpoint) -> Path:
    """`tokenizer_of`, where nothing goes on without one.

    Raises:
        TokenizerMissingError: There is none.
    """
    if found := tokenizer_of(checkpoint):
        return found
    vocab_size = checkpoint.config.vocab_size
    known = catalogue.tokenizer_for(vocab_size)
    raise TokenizerMissingError(
        f"{checkpoint.path}: no tokenizer of {vocab_size} tokens is next to the model, "
        f"in the current folder or in {store.tokenizers_folder()}",
        f"llamatui pull {known.name}" if known else "name its file: -z tokenizer.model (or .bin, .json)",
        known.name if known else "",
    )
