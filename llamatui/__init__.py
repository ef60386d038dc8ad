"""llamatui: stories and chats with Llama-family models on your own CPU.

>>> import llamatui
>>> model = llamatui.load("stories260K.bin")
>>> print(llamatui.generate(model, "Once upon a time", temperature=0, max_tokens=50))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel

__all__ = ["generate", "load"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # slow to import: half the time of --help

        return version("llamatui")
    raise AttributeError(name)


def load(path: str, **options: Any) -> "LoadedModel":
    """Opens a model; see `llamatui.app.model.load_model` for the options and errors.

    `threads` holds for NumPy's BLAS only if NumPy has not been imported before.
    """
    from llamatui.backends.threads import limit_blas_threads

    limit_blas_threads(options.get("threads"))
    from llamatui.app.model import load_model

    return load_model(path, **options)


def generate(model: "LoadedModel", prompt: str = "", *, max_tokens: int = 256, **sampling: Any) -> str:
    """The text that `model` puts behind `prompt`; `sampling` as in `llamatui.app.sampling.Sampling`."""
    from llamatui.app.engine import Limits, Session
    from llamatui.app.sampler import Sampler
    from llamatui.app.sampling import Sampling

    ids = model.encode_prompt(prompt)
    limits = Limits(max_new_tokens=max_tokens, stop_ids=model.stop_ids)
    generation = Session(model.backend).start(ids, Sampler(Sampling(**sampling)), limits)
    return model.tokenizer.decode([record.id for record in generation], after=ids[-1])
