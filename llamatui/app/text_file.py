"""Files that a person names: nothing is overwritten by accident, and every error is said clearly."""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from llamatui.errors import LlamatuiError

NAME_WORDS = 6
LONGEST_NAME = 60


def named_path(name: str) -> Path:
    """The path that `name` means; `~` at its beginning is a home folder, as in a shell."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # of nobody: then it is a part of the name
        return Path(name)


def name_from(text: str, otherwise: str) -> str:
    """The first words of `text` for the name of a file, without its end; `otherwise` where there are none."""
    words = re.findall(r"\w+", text.lower())[:NAME_WORDS]
    return "-".join(words)[:LONGEST_NAME].strip("-_") or otherwise


def write_whole(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Writes a file whole or not at all: until all is on the disk, what was there stays.

    Raises:
        FileExistsError: There is such a file, and it may not be overwritten.
        OSError: It cannot be written.
    """
    before = None
    if overwrite:
        with suppress(FileNotFoundError):
            before = path.stat()
    if before and not stat.S_ISREG(before.st_mode):
        path.write_bytes(content)  # a device or a pipe takes it, a folder refuses
        return
    if before:
        path.open("r+b").close()  # refuses where the file may only be read, though its folder may be written
    target = Path(os.path.realpath(path)) if overwrite else path  # a link goes on leading there
    # Made by `open` and not by `tempfile`, whose files nobody else may read.
    part = target.with_name(f".llamatui-{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            if before:
                part.chmod(stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> Path:
    """Writes `text` into a file, whole or not at all; returns its absolute path.

    Raises:
        FileExistsError: There is such a file, and it may not be overwritten.
        LlamatuiError: It cannot be written.
    """
    try:
        # Half a surrogate pair, which a model may say, is no UTF-8.
        write_whole(path, text.encode("utf-8", "replace"), overwrite=overwrite)
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
