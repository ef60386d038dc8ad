"""How the nodes of a tree stand in tables: a row for each, under a number that is its own for good.

A node's number is greater than its parent's, and than those of older siblings; 0 is the root. So rows in the
order of their numbers are a tree again, and no row can make a circle.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

Kind = Literal["story", "chat"]

TokenRow = tuple[int, int, str, str, bool, bool]
"""parent, token id, text, author, pending, begins"""
TurnRow = tuple[int, str, str, str | None, bool]
"""parent, role, content, ids as JSON, stopped"""
Row = TokenRow | TurnRow

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading damaged rows may raise."""
LONGEST_WORD = 30  # characters that are looked through for its beginning: some scripts have no spaces

TABLES = {
    "story": ("tokens", ("parent", "token", "text", "author", "pending", "begins")),
    "chat": ("turns", ("parent", "role", "content", "ids", "stopped")),
}


def storable(value: Any) -> Any:
    """Text as it is, unless it holds half a surrogate pair or a byte that is no UTF-8: then as a blob."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def text_of(value: Any) -> str:
    """The text that `storable` made this of.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass")
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.40}")
    return value


def readable(value: Any) -> str:
    """Text to show, whatever it is: nothing depends on it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def write_rows(
    connection: sqlite3.Connection, document: int, kind: Kind, rows: Mapping[int, Row | None]
) -> None:
    """Puts rows in the place of those of their number; None takes one away."""
    table, columns = TABLES[kind]
    gone = [(document, number) for number, row in rows.items() if row is None]
    connection.executemany(f"DELETE FROM {table} WHERE document = ? AND number = ?", gone)
    connection.executemany(
        f"""INSERT OR REPLACE INTO {table} (document, number, {", ".join(columns)})
        VALUES (?, ?{", ?" * len(columns)})""",
        ((document, number, *map(storable, row)) for number, row in rows.items() if row is not None),
    )


def delete_rows(connection: sqlite3.Connection, document: int, kind: Kind) -> None:
    connection.execute(f"DELETE FROM {TABLES[kind][0]} WHERE document = ?", (document,))


def read_rows(connection: sqlite3.Connection, document: int, kind: Kind) -> Iterable[tuple[Any, ...]]:
    """(number, columns...), ordered by number; not checked."""
    table, columns = TABLES[kind]
    return connection.execute(
        f"SELECT number, {', '.join(columns)} FROM {table} WHERE document = ? ORDER BY number", (document,)
    )


def spoken(
    connection: sqlite3.Connection, document: int, kind: Kind, state: str
) -> tuple[list[str], list[str]]:
    """(what is shown, what all other branches say): the story, or each message.

    A branch of a story begins with the word in which it parts from another.

    Raises:
        ValueError: Something there is not what it should be.
    """
    table, column = ("tokens", "text") if kind == "story" else ("turns", "content")
    found = connection.execute(
        f"SELECT number, parent, {column} FROM {table} WHERE document = ? ORDER BY number", (document,)
    )
    nodes = {int(number): (int(parent), text_of(text)) for number, parent, text in found}
    places = json.loads(state)
    path = list(_upwards(nodes, int(places["end"])))[::-1]
    shown = [nodes[number][1] for number in path]
    if partial := places.get("partial"):
        shown.append(text_of(partial["text"]))
    if kind == "story":
        shown = ["".join(shown)]
    others: list[str] = []
    growing: dict[int, int] = {}  # which of the others a node is the last one of, in a story
    on_path = set(path)
    for number, (parent, text) in nodes.items():
        if number in on_path:
            continue
        if parent in growing:
            which = growing.pop(parent)
            others[which] += text
        else:
            which = len(others)
            others.append(_word_before(nodes, parent) + text if kind == "story" else text)
        if kind == "story":
            growing[number] = which
    return shown, others


def _upwards(nodes: Mapping[int, tuple[int, str]], number: int) -> Iterator[int]:
    """A node's number, its parent's, and so on. Damaged rows make no circle."""
    while number in nodes:
        yield number
        parent = nodes[number][0]
        if parent >= number:
            return
        number = parent


def _word_before(nodes: Mapping[int, tuple[int, str]], number: int) -> str:
    """The word that ends in this node, as what follows may be the rest of it."""
    word = ""
    for above in _upwards(nodes, number):
        text = nodes[above][1]
        word = text + word
        if len(word) > LONGEST_WORD or any(map(str.isspace, text)):
            break
    return re.split(r"\s", word)[-1]
