"""KV caches on disk: what the model has read of a text is not read again when that text is reopened."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from llamatui.app.conversation import Conversation
from llamatui.app.engine import Limits, Session
from llamatui.app.file_hash import known_sha256
from llamatui.app.kv_store import KVStore
from llamatui.app.model import LoadedModel
from llamatui.app.story import Story
from llamatui.app.tui.runner import Runner
from llamatui.errors import ModelError


class Caches:
    """The store of KV caches, and the hashes of the models that computed them.

    A cache holds for the very weights that computed it: those of the file that was opened, whatever bears its
    name by now. As long as nobody knows their hash, nothing is kept and nothing taken.
    """

    def __init__(self, runner: Runner, limit_bytes: int, tell: Callable[[str], object]) -> None:
        """
        Args:
            runner: The inference thread, which reads and writes them.
            limit_bytes: Of disk; 0 keeps nothing.
            tell: Called on other threads with what went wrong, once for each.
        """
        self._runner = runner
        self._hasher = Runner("hashing", lambda error: tell(f"The model file cannot be read: {error}"))
        self._tell = tell
        self._store = KVStore(limit_bytes=limit_bytes)
        self._told: set[str] = set()
        self._sha256: dict[tuple[Path, tuple[int, int]], str] = {}

    def sha256(self, model: LoadedModel) -> str:
        """Of the weights; "" as long as nobody knows."""
        return self._sha256.get((model.path, model.checkpoint.opened), "")

    def known(self, model: LoadedModel) -> str:
        """The same, and looks whether the disk knows. Not for the event loop."""
        known = self.sha256(model)
        if not known:
            with suppress(OSError, ModelError):  # the weights are in memory; the file is gone, or another
                known = known_sha256(model.path, model.checkpoint.opened) or ""
        return known

    def learn(self, model: LoadedModel) -> None:
        """Has the hash computed, which takes seconds where it never was."""
        if not self.sha256(model):
            self._hasher.submit(partial(self._learn, model))

    def _learn(self, model: LoadedModel) -> None:
        with suppress(FileNotFoundError, ModelError):  # as above
            self._sha256[model.path, model.checkpoint.opened] = model.sha256(self._hasher.check)

    def adopt(self, content: Story | Conversation) -> bool:
        """Takes from disk what is kept of what the model is about to read. For the inference thread.

        Returns:
            Whether the hash was known; else it may be tried again.
        """
        sha256 = self.known(content.model)
        if sha256:
            self._store.adopt(content.session, prompt_of(content), sha256)
            self._tell_problems()
        return bool(sha256)

    def keep(self, model: LoadedModel, session: Session) -> None:
        """Has the inference thread write what the model has read of a text."""
        if sha256 := self.sha256(model):
            self._runner.submit(partial(self._keep, session, sha256))

    def _keep(self, session: Session, sha256: str) -> None:
        self._store.keep(session, sha256)
        self._tell_problems()

    def _tell_problems(self) -> None:
        for problem in self._store.problems:
            if problem not in self._told:
                self._told.add(problem)
                self._tell(problem)

    def close(self) -> None:
        self._hasher.close()


def prompt_of(content: Story | Conversation) -> list[int]:
    """What the model is about to read."""
    if isinstance(content, Story):
        return content.prompt().ids
    question = content.question(Limits())
    return question[0] if question else []
