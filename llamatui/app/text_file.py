"""Files that a person names: nothing is overwritten by accident, and every error is said clearly."""

from pathlib import Path

from llamatui.errors import LlamatuiError


def named_path(name: str) -> Path:
    """The path that `name` means; `~` at its beginning is a home folder, as in a shell."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # of nobody: then it is a part of the name
        return Path(name)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> Path:
    """Writes `text` into a file; returns its absolute path.

    Raises:
        FileExistsError: There is such a file, and it may not be overwritten.
        LlamatuiError: It cannot be written.
    """
    try:
        # Half a surrogate pair, which a model may say, is no UTF-8.
        with path.open("w" if overwrite else "x", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise
    except FileNotFoundError:
        raise LlamatuiError(f"there is no folder {path.parent}", "name one that is there") from None
    except IsADirectoryError:
        raise LlamatuiError(f"{path} is a folder", "choose another name") from None
    except PermissionError:
        raise LlamatuiError(f"no permission to write {path}", "choose another folder") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise LlamatuiError(f"{path} cannot be written: {reason}", "choose another name") from error
    return path.absolute()
