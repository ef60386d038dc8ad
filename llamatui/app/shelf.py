"""The models that one could open: what is here, what each file says of itself, and what could be fetched."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamatui.app import catalogue, store
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint import ModelConfig


@dataclass(frozen=True, slots=True)
class Shelved:
    name: str
    path: Path | None
    """None: it is to be fetched first."""
    size: int
    """Bytes of the file, or to download."""
    parameters: int = 0
    format: str = ""
    """Precision and file format, in a few characters; "", like 0 below, where only the file would tell."""
    context: int = 0
    """Most tokens."""
    needs: int = 0
    """Bytes of memory, weights and a full KV cache, with the backend that runs where none is asked for."""
    problem: str = ""
    """Why it cannot be opened."""
    about: str = ""
    gated: bool = False


def model_files(*folders: Path) -> list[Path]:
    """Every file that may be a model: the user's, the bundled one, then those in `folders`; each once."""
    found = [model.path for model in store.list_models()]
    if store.BUNDLED.path.is_file():
        found.append(store.BUNDLED.path)
    for folder in folders:
        found += sorted(path for path in _files(folder) if _may_be_model(path))
    once = {path.resolve(): path for path in reversed(found)}
    return sorted(once.values(), key=found.index)


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:  # gone, or not ours to read
        return


def _may_be_model(path: Path) -> bool:
    stem, end = path.stem.casefold(), path.suffix.casefold()
    return end in (".bin", ".gguf") and not stem.startswith(".") and not stem.endswith("tokenizer")


def look(path: Path, context: int | None = None) -> Shelved:
    """Reads the header of a file. What is wrong with it is its `problem`.

    Args:
        context: Most tokens that would be held; None means the model's.
    """
    size = 0
    try:
        size = path.stat().st_size
        return _look(path, size, context)
    except LlamatuiError as error:
        return Shelved(path.stem, path, size, problem=error.message.removeprefix(f"{path}: "))
    except OSError as error:
        return Shelved(path.stem, path, size, problem=f"cannot be read: {error.strerror}")


def _look(path: Path, size: int, context: int | None) -> Shelved:
    from llamatui.app.gguf_cache import is_gguf
    from llamatui.backends.checkpoint import Checkpoint

    if is_gguf(path):
        from llamatui.export.gguf_file import open_gguf
        from llamatui.export.to_bin import default_version

        source = open_gguf(path)
        config, version, kind = source.config, default_version(source), f"{_gguf_type(path)} GGUF"
    else:
        checkpoint = Checkpoint(path)
        config, version = checkpoint.config, checkpoint.version
        kind = f"{'Q8_0' if version == 2 else 'fp32'} v{version}"
    needs = memory_needed(config, version, context)
    return Shelved(path.stem, path, size, config.n_params, kind, config.max_seq_len, needs)


def _gguf_type(path: Path) -> str:
    """Of most matrices."""
    from collections import Counter

    from llamatui.export.gguf_file import type_name
    from llamatui.export.gguf_header import read_gguf_header

    tensors = read_gguf_header(path).tensors.values()
    return Counter(type_name(tensor) for tensor in tensors if len(tensor.shape) == 2).most_common(1)[0][0]


def memory_needed(config: "ModelConfig", version: int, context: int | None = None) -> int:
    """Bytes of the weights of a `.bin` of that version, run in place, and of a full context's KV cache."""
    from dataclasses import replace

    from llamatui.backends.checkpoint import tensor_layout
    from llamatui.export.to_bin import DEFAULT_GROUP_SIZE

    if version == 2 and not config.group_size:
        config = replace(config, group_size=DEFAULT_GROUP_SIZE)
    tokens = min(context or config.max_seq_len, config.max_seq_len)
    return tensor_layout(config, version)[-1].end + config.kv_bytes_per_token * tokens


def offers() -> list[Shelved]:
    """What the catalogue could bring, except for what is here."""
    return [
        Shelved(
            entry.name, None, entry.size, entry.parameters, about=f"{entry.about} {entry.licence}.",
            gated=entry.gated,
        )
        for entry in catalogue.MODELS
        if store.find(entry.name) is None
    ]  # fmt: skip
