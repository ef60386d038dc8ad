"""JSON of unknown origin, read strictly: config.json and its kin, and the header of a safetensors file.

What parsers disagree on is refused: duplicate names, text that is not UTF-8. What would cost much time or
memory is refused by its length.
"""

import json
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamatui.backends.checkpoint import MAX_DIMENSION
from llamatui.errors import CheckpointError

JsonObject = dict[str, object]

MAX_BYTES = 4 << 20
"""Twenty times what a Llama of 405 B parameters needs; a hostile file of this size takes half a second."""

AGAIN = "the file is damaged: get it again"
WRONG_VALUE = "the file is damaged, was edited, or is of another architecture: get it again"
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


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to a model's parameters. One that is null counts as absent, as it does for transformers.

    Methods raise CheckpointError, which begins with `where`, if a value is of another type or out of range,
    or is absent and has no default.
    """

    where: str
    values: Mapping[str, object]

    def get(self, key: str) -> object:
        return self.values.get(key)

    def wrong(self, key: str, expected: str, hint: str = WRONG_VALUE) -> CheckpointError:
        found = reprlib.repr(self.get(key)) if self.get(key) is not None else "none"
        return CheckpointError(f"{self.where}: expected {key} {expected}, found {found}", hint)

    def integer(self, key: str, default: int | None = None) -> int:
        value = default if self.get(key) is None else self.get(key)
        if type(value) is not int or not 0 < value <= MAX_DIMENSION:
            raise self.wrong(key, f"in 1..{MAX_DIMENSION}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.get(key) is None else self.get(key)
        # Bounds that a float32 can hold; NaN is outside of any.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
            raise self.wrong(key, "to be a number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "to be true or false")
        return bool(value)

    def token_id(self, key: str) -> int:
        """-1 where it is absent."""
        value = -1 if self.get(key) is None else self.get(key)
        if type(value) is not int:
            raise self.wrong(key, "to be a token id")
        return value

    def token_ids(self, key: str) -> list[int]:
        """Of one id or a list of them; empty where it is absent."""
        value = self.get(key)
        found: list[object] = value if isinstance(value, list) else [] if value is None else [value]
        ids = [token for token in found if type(token) is int]
        if len(ids) < len(found):
            raise self.wrong(key, "to be a token id, or a list of them")
        return ids
