"""What takes long and is not generating: opening a model or an older text, and making another backend.

Errands run one after another on a thread beside the inference thread, so that what is open stays usable
meanwhile. They tell the app how far they are, and how they ended.
"""

import gc
import threading
from typing import TYPE_CHECKING

from textual.app import App
from textual.message import Message

from llamatui.app.tui.launch import Launch, RoomName
from llamatui.app.tui.messages import BackendReady, DocumentReady, ErrandFailed, ErrandStep, ModelReady
from llamatui.app.tui.runner import Closing, Runner

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel
    from llamatui.app.tui.keeping import Keeping


class Errand:
    """A job for a runner. Subclasses do the work in `run`, and call `tell` now and then."""

    what: str
    """What is being done, in two or three words."""

    def __init__(self, app: App[None], runner: Runner) -> None:
        self._app = app
        self._runner = runner
        self._cancelled = threading.Event()

    def run(self) -> Message:
        """Does it; returns what the app is told at the end."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Something else is wanted: it ends at its next step, and says nothing more."""
        self._cancelled.set()

    def tell(self, step: str) -> None:
        self._runner.check()
        if self._cancelled.is_set():
            raise Closing
        self._app.post_message(ErrandStep(self, step))

    def __call__(self) -> None:
        try:
            if self._cancelled.is_set():
                return
            message = self.run()
        except Closing:
            raise
        except MemoryError:
            from llamatui.errors import LlamatuiError

            error = LlamatuiError("there is not enough memory for it", "choose a smaller model")
            message = ErrandFailed(self, error)
        except Exception as error:  # the app says it; a thread that dies would say nothing
            message = ErrandFailed(self, error)
        self._app.post_message(message)


class Loading(Errand):
    """Opens the model of a launch."""

    def __init__(self, app: App[None], runner: Runner, options: Launch, name: str, pull: str = "") -> None:
        """`pull`: name in the catalogue of what is fetched first, "" for nothing."""
        super().__init__(app, runner)
        self.options = options
        self.what = f"opening {name}"
        self._pull = pull

    def run(self) -> Message:
        options = self.options
        if self._pull:
            gc.enable()  # for that may take long; see below
            self._fetch()
        try:
            self.tell("starting the engine")
            # These imports bring NumPy: here they hold up nothing that is drawn.
            from llamatui.backends.threads import limit_blas_threads

            limit_blas_threads(options.threads)
            from llamatui.app.model import load_model

            if options.history:
                import llamatui.app.history.recorder
                import llamatui.app.tui.caches  # noqa: F401
        finally:
            if not gc.isenabled():  # see run_app
                gc.freeze()  # what is there stays: to look through it would hold up model and screen
                gc.enable()
        model = load_model(
            options.model,
            tokenizer=options.tokenizer,
            backend=options.backend,
            threads=options.threads,
            chat_format=options.chat_format,
            progress=self.tell,
        )
        return ModelReady(self, model)

    def _fetch(self) -> None:
        from llamatui.app.pull import pull

        doing = f"fetching {self._pull}"

        def begin(step: str) -> None:
            nonlocal doing
            doing = f"{'fetching' if step == 'downloading' else 'converting'} {self._pull}"

        def progress(done: int, total: int) -> None:
            self.tell(f"{doing}: {done * 100 // max(total, 1)} %")

        self.tell(doing)
        pull(self._pull, progress=progress, step=begin)


class Reopening(Errand):
    """Takes a text out of the history, for a model that is open."""

    what = "reopening"

    def __init__(
        self,
        app: App[None],
        runner: Runner,
        kind: RoomName,
        uid: str,
        model: "LoadedModel",
        keeping: "Keeping",
        sought: str = "",
    ) -> None:
        """`sought`: what was found on a branch that is not shown."""
        super().__init__(app, runner)
        self.kind = kind
        self.sought = sought
        self._uid, self._model, self._keeping = uid, model, keeping

    def run(self) -> Message:
        from llamatui.app.history.collection import Library

        self.tell("reading the history")
        self._keeping.flush()
        library = Library()
        try:
            saved = library.load(self._uid)
        finally:
            library.close()
        document = saved.restore(self._model, self._keeping.known_sha256(self._model))
        return DocumentReady(self, document, saved.entry.model, saved.model_sha256)


class Switching(Errand):
    """Makes another backend for a model that is open: compiles it, or quantizes the weights, if need be."""

    def __init__(self, app: App[None], runner: Runner, model: "LoadedModel", backend: str) -> None:
        super().__init__(app, runner)
        self.what = f"preparing {backend}"
        self.backend = backend
        self._model = model

    def run(self) -> Message:
        from llamatui.backends.registry import create_backend

        model = self._model
        self.tell("starting")
        return BackendReady(
            self, model, create_backend(self.backend, model.checkpoint, model.threads, self.tell)
        )
