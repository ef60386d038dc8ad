"""llamatui: stories and chats with Llama-family models on your own CPU.

>>> import llamatui
>>> print(llamatui.load().generate("Once upon a time", temperature=0, max_tokens=50))
>>> chat = llamatui.load("instruct-model.gguf").chat()
>>> print(chat.send("What is the capital of France?"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from llamatui.app.model import LoadedModel

__all__ = ["generate", "load"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # slow to import: half the time of --help

        return version("llamatui")
    raise AttributeError(name)


def load(
    path: "str | os.PathLike[str] | None" = None,
    *,
    tokenizer: "str | os.PathLike[str] | None" = None,
    backend: str | None = None,
    threads: int | None = None,
    chat_format: str = "",
) -> "LoadedModel":
    """Opens a `.bin` or `.gguf` file, or a model by its name; by default the one that comes with llamatui.

    The model generates (`generate`, `stream`) and chats (`chat`). See `llamatui.app.model.load_model` for the
    arguments and errors. `threads` holds for NumPy's BLAS only if NumPy has not been imported before.
    """
    from llamatui.backends.threads import limit_blas_threads

    limit_blas_threads(threads)
    from llamatui.app.model import load_model

    return load_model(path, tokenizer=tokenizer, backend=backend, threads=threads, chat_format=chat_format)


def generate(model: "LoadedModel", prompt: str = "", **options: Any) -> str:
    """The text that `model` puts behind `prompt`: `model.generate(prompt, ...)`."""
    return model.generate(prompt, **options)
