"""Reading JSON that nobody vouches for: types and ranges are checked, and what is wrong is named."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from llamatui.errors import UsageError

SHOWN = 40
"""Characters of a wrong value that a message shows."""


class Fields:
    """One JSON object."""

    def __init__(self, value: object, file: str, hint: str, path: str = "") -> None:
        """
        Args:
            file: Its name, for messages.
            hint: What messages say to do.
            path: The way to the object, from the outermost one.

        Raises:
            UsageError: `value` is no object. All methods raise it for what is not as expected.
        """
        self.file, self.path, self.hint = file, path, hint
        if not isinstance(value, dict):
            raise self._error(path, "an object", value)
        self._values: dict[str, Any] = value

    def wrong(self, name: str, expected: str, found: str) -> UsageError:
        return self._told(self._at(name), expected, found)

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def child(self, name: str) -> "Fields":
        return Fields(self._values.get(name), self.file, self.hint, self._at(name))

    def children(self, name: str, most: int) -> list["Fields"]:
        path = self._at(name)
        return [
            Fields(item, self.file, self.hint, f"{path}[{i}]")
            for i, item in enumerate(self._list(name, most))
        ]

    def integer(self, name: str, low: int, high: int) -> int:
        return self._integer(self._values.get(name), self._at(name), low, high)

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        return self.integer(name, low, high) if self.has(name) else None

    def integers(self, name: str, low: int, high: int, most: int) -> tuple[int, ...]:
        path = self._at(name)
        return tuple(
            [self._integer(item, f"{path}[{i}]", low, high) for i, item in enumerate(self._list(name, most))]
        )

    def number(self, name: str) -> float:
        return self._number(self._values.get(name), self._at(name))

    def optional_numbers(self, name: str, count: int) -> tuple[float | None, ...]:
        """`count` numbers, or nulls."""
        items = self._list(name, count)
        if len(items) != count:
            raise self.wrong(name, f"{count} of them", str(len(items)))
        path = self._at(name)
        return tuple(
            [None if item is None else self._number(item, f"{path}[{i}]") for i, item in enumerate(items)]
        )

    def text(self, name: str, longest: int) -> str:
        return self._text(self._values.get(name), self._at(name), longest)

    def texts(self, name: str, most: int, longest: int) -> Iterator[str]:
        for i, item in enumerate(self._list(name, most)):
            yield self._text(item, f"{self._at(name)}[{i}]", longest)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or value not in choices:
            raise self._error(self._at(name), f"one of {', '.join(choices)}", value)
        return value

    def matching(self, name: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._error(self._at(name), expected, value)
        return value

    def labels(self, name: str, most: int = 100, longest: int = 1000) -> dict[str, Any]:
        """An object of short texts and nulls."""
        inner = self.child(name)
        if len(inner._values) > most:
            raise self.wrong(name, f"at most {most} of them", str(len(inner._values)))
        return {
            key: None if value is None else self._text(value, inner._at(key), longest)
            for key, value in inner._values.items()
        }

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _list(self, name: str, most: int) -> list[Any]:
        value = self._values.get(name)
        if not isinstance(value, list):
            raise self._error(self._at(name), "a list", value)
        if len(value) > most:
            raise self.wrong(name, f"at most {most} of them", str(len(value)))
        return value

    def _integer(self, value: object, path: str, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(path, f"an integer in {low}..{high}", value)
        return value

    def _number(self, value: object, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self._error(path, "a number", value)
        return float(value)

    def _text(self, value: object, path: str, longest: int) -> str:
        if not isinstance(value, str):
            raise self._error(path, "a text", value)
        if len(value) > longest:
            raise self._told(path, f"at most {longest} characters", str(len(value)))
        # JSON can spell half a surrogate pair, which no terminal or file can be given.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _error(self, path: str, expected: str, found: object) -> UsageError:
        if isinstance(found, dict | list):
            shown = "an object" if isinstance(found, dict) else "a list"
        else:
            shown = "nothing" if found is None else repr(found)
        return self._told(path, expected, shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}...")

    def _told(self, path: str, expected: str, found: str) -> UsageError:
        return UsageError(
            f"{self.file}: {path}{': ' if path else ''}expected {expected}, found {found}", self.hint
        )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False
