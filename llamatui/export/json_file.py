"""JSON of unknown origin, read strictly: config.json and its kin, and the header of a safetensors file.

What parsers disagree on is refused: duplicate names, text that is not UTF-8. What would cost much time or
memory is refused by its length.
"""

import json
from collections import Counter
from pathlib import Path

from llamatui.errors import CheckpointError

JsonObject = dict[str, object]

MAX_BYTES = 4 << 20
"""Twenty times what a Llama of 405 B parameters needs; a hostile file of this size takes half a second."""

AGAIN = "the file is damaged: get it again"
LFS_POINTER = b"version https://git-lfs"
LFS_HINT = "in the folder, run `git lfs pull`"


def parse_object(data: bytes, where: str) -> JsonObject:
    """The JSON object in `data`, at most MAX_BYTES of it.

    Raises:
        CheckpointError: It is something else; the message begins with `where`.
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"{where}: expected at most {MAX_BYTES:,} bytes of JSON, found {len(data):,}", AGAIN
        )
    try:
        # Not given as bytes, in which json.loads would also accept UTF-16 and UTF-32.
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected a JSON object, found {error}", AGAIN) from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found a {type(document).__name__}", AGAIN)
    return document


def _unique(pairs: list[tuple[str, object]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:80]!r} twice")
    return found


def read_object(path: Path) -> JsonObject:
    """The JSON object in a file.

    Raises:
        CheckpointError: It is missing, too long or something else.
    """
    return parse_object(read_small(path), str(path))


def read_small(path: Path) -> bytes:
    """Contents of a file of at most MAX_BYTES.

    Raises:
        CheckpointError: It is missing, longer, or not a file.
    """
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            found = "something else" if path.exists() else "no such file"
            raise CheckpointError(
                f"{path}: expected a file, found {found}", "get the whole folder of the model"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from None
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path}: expected at most {MAX_BYTES:,} bytes, found more", AGAIN)
    if data.startswith(LFS_POINTER):
        raise CheckpointError(f"{path}: expected the file, found a Git LFS pointer to it", LFS_HINT)
    return data
