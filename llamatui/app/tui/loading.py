"""Opens the model on the inference thread, and tells the app how far it is."""

from textual.app import App

from llamatui.app.tui.launch import Launch
from llamatui.app.tui.messages import LoadFailed, LoadStep, ModelReady
from llamatui.app.tui.runner import Closing, Runner


class Loading:
    """A job for the runner."""

    def __init__(self, app: App[None], runner: Runner, options: Launch, pull: str = "") -> None:
        """`pull`: name in the catalogue of what is fetched first, "" for nothing."""
        self._app = app
        self._runner = runner
        self._options = options
        self._pull = pull

    def __call__(self) -> None:
        options = self._options
        try:
            if self._pull:
                self._fetch()
            self._tell("starting the engine")
            # These imports bring NumPy: here they hold up nothing that is drawn.
            from llamatui.backends.threads import limit_blas_threads

            limit_blas_threads(options.threads)
            from llamatui.app.model import load_model

            model = load_model(
                options.model,
                tokenizer=options.tokenizer,
                backend=options.backend,
                threads=options.threads,
                chat_format=options.chat_format,
                progress=self._tell,
            )
        except Closing:
            raise
        except Exception as error:  # an error screen says it; a thread that dies would say nothing
            self._app.post_message(LoadFailed(error))
        else:
            self._app.post_message(ModelReady(model))

    def _fetch(self) -> None:
        from llamatui.app.pull import pull

        def step(done: int, total: int) -> None:
            self._tell(f"fetching {self._pull}: {done * 100 // max(total, 1)} %")

        self._tell(f"fetching {self._pull}")
        pull(self._pull, progress=step)

    def _tell(self, step: str) -> None:
        self._runner.check()
        self._app.post_message(LoadStep(step))
