"""The models that are here by name: those the user pulled, and the one that comes with llamatui.

A pulled one is `<name>.bin`, its tokenizer and where it came from, all in one folder. A name works everywhere
a path does: see `resolve`. Imported for shell completion, so it stays light.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llamatui.app import catalogue
from llamatui.errors import LlamatuiError, ModelError, UsageError
from llamatui.tokenizers.file_names import MODEL, TOKENIZER_ENDS

FILE_ENDS = (".bin", ".gguf", ".pt", ".pth", ".safetensors", ".json", ".model")
"""What ends a path, and no name."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a folder of ours: pulled, converted from a GGUF file, or bundled."""

    name: str
    path: Path

    @property
    def files(self) -> list[Path]:
        """All that belongs to it; the model itself is last."""
        ends = (*TOKENIZER_ENDS, ".json", ".bin")
        return [path for end in ends if (path := self.path.with_name(self.name + end)).exists()]

    def origin(self) -> dict[str, Any]:
        """Where it came from, as `pull` wrote it; {} where that is not known."""
        try:
            content = json.loads(self.path.with_name(f"{self.name}.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        return content if all(isinstance(content.get(key), str) for key in ("repo", "file")) else {}


BUNDLED = StoredModel("stories", Path(__file__).parent / "bundled" / "stories.bin")
"""Comes with llamatui, and runs where none is named. A file or a pulled model of its name goes before it."""


def bundled() -> Path:
    """The file of the model that comes with llamatui.

    Raises:
        ModelError: It is not there: left out by who packed llamatui, or inside a zip file, where nothing can
            be memory-mapped.
    """
    for path in (BUNDLED.path, BUNDLED.path.with_name(BUNDLED.name + MODEL)):
        if not path.is_file():
            raise ModelError(
                f"{path}: expected the model that comes with llamatui, found no such file",
                "install llamatui again with pip; or llamatui pull stories15M, and name that one",
            )
    return BUNDLED.path


def refuse_chat() -> NoReturn:
    """Tells that the bundled model, meant or named, is no instruct model.

    Raises:
        ModelError: Always.
    """
    raise ModelError(
        f"chat needs an instruct model; {BUNDLED.name}, which comes with llamatui, only tells stories",
        "llamatui pull SmolLM2-135M-Instruct, then: llamatui chat SmolLM2-135M-Instruct",
    )


def data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("llamatui", appauthor=False)


def models_folder() -> Path:
    return data_folder() / "models"


def downloads_folder() -> Path:
    """What has been fetched of models that are not pulled yet, a folder for each repository."""
    return data_folder() / "downloads"


def tokenizers_folder() -> Path:
    """The user's own tokenizers, for models that come without one."""
    return data_folder() / "tokenizers"


def list_models() -> list[StoredModel]:
    """Pulled models, by name."""
    return _models_among(models_folder().glob("*.bin"))


def list_converted() -> list[StoredModel]:
    """What the GGUF files that have been run became, by name. Two of one name are possible."""
    from llamatui.app.gguf_cache import cache_folder

    return _models_among(cache_folder().glob("*/*.bin"))


def _models_among(paths: Iterable[Path]) -> list[StoredModel]:
    shown = [path for path in paths if not path.name.startswith(".") and not path.stem.endswith(".tokenizer")]
    models = [StoredModel(path.stem, path) for path in shown]
    return sorted(models, key=lambda model: (model.name.casefold(), model.path))


def find(name: str) -> StoredModel | None:
    """The pulled model of this name, in any case, with or without `.bin`."""
    wanted = name.casefold().removesuffix(".bin")
    return next((model for model in list_models() if model.name.casefold() == wanted), None)


def complete_names(incomplete: str) -> list[str]:
    """Names of models that begin so, for shell completion."""
    names = dict.fromkeys([*(model.name for model in list_models()), BUNDLED.name])
    return [name for name in names if name.startswith(incomplete)]


def resolve(name: str | os.PathLike[str]) -> Path:
    """The model file that is meant: a file that exists, or the name of a pulled model or of the bundled one.

    What looks like a path is given back as it is: whoever opens it says what is wrong with it. `stories.bin`
    is such a path too: one who looks for a file of theirs must not get the bundled model instead.

    Raises:
        ModelError: It looks like a name, and no such model is here.
    """
    text = os.fspath(name)
    path = Path(text)
    if "/" in text or os.sep in text or is_file(path):
        return path
    if pulled := find(text):
        return pulled.path
    if text.casefold() == BUNDLED.name:
        return bundled()
    if entry := catalogue.find(text.removesuffix(".bin")):
        if isinstance(entry, catalogue.Tokenizer):
            raise ModelError(f"{entry.name} is a tokenizer, not a model", "llamatui models")
        raise ModelError(f"{entry.name} is not here yet", f"llamatui pull {entry.name}")
    if path.suffix.casefold() in FILE_ENDS or not text:
        return path
    known = [*complete_names(""), *(model.name for model in catalogue.MODELS)]
    hint = _meant(catalogue.near(text, known))
    if " " in text.strip():
        hint = f"a text to go on from is given with -i; {hint}"
    raise ModelError(f"{text}: no such file, and no pulled model", hint)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # in a folder of somebody else, too long, or with a zero byte
        return False


def _meant(near: Sequence[str]) -> str:
    begin = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{begin}llamatui models lists what is here"


def stored(name: str) -> list[StoredModel]:
    """The pulled model of this name, or else all that GGUF files of this name became.

    Raises:
        ModelError: There is none.
        UsageError: It is the bundled one.
    """
    if model := find(name):
        return [model]
    all_converted = list_converted()
    if same := [model for model in all_converted if model.name.casefold() == name.casefold()]:
        return same
    if name.casefold() == BUNDLED.name:
        raise UsageError(
            f"{BUNDLED.name} comes with llamatui and cannot be deleted",
            "give a model that was pulled: llamatui models lists them",
        )
    near = catalogue.near(name, [model.name for model in (*list_models(), *all_converted)])
    raise ModelError(f"no pulled model is called {name!r}", _meant(near))


def remove(model: StoredModel) -> None:
    """Deletes a model and what belongs to it.

    Raises:
        LlamatuiError: A file cannot be deleted.
    """
    delete(model.files[::-1])  # the model first: what an interrupted removal leaves is no model any more
    if model.path.parent != models_folder():
        with suppress(OSError):  # the same GGUF file has been run under another name too
            model.path.parent.rmdir()


def delete(files: Sequence[Path]) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LlamatuiError(f"{path}: cannot be deleted: {error.strerror}") from error
