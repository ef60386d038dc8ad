"""How the nodes of a tree stand in tables: a row for each, under a number that is its own for good.

A node's number is greater than its parent's, and than those of older siblings; 0 is the root. So rows in the
order of their numbers are a tree again, and no row can make a circle.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["story", "chat"]

TokenRow = tuple[int, int, str, str, bool, bool]
"""parent, token id, text, author, pending, begins"""
TurnRow = tuple[int, str, str, str | None, bool]
"""parent, role, content, ids as JSON, stopped"""
Row = TokenRow | TurnRow

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


def shown_text(connection: sqlite3.Connection, document: int, kind: Kind, state: str) -> str:
    """What the branch that is shown says.

    Raises:
        ValueError: Something there is not what it should be.
    """
    table, column = ("tokens", "text") if kind == "story" else ("turns", "content")
    places = json.loads(state)
    found = connection.execute(
        f"""WITH RECURSIVE path (number, parent, text) AS (
            SELECT number, parent, {column} FROM {table} WHERE document = :document AND number = :end
            UNION ALL
            SELECT above.number, above.parent, above.{column} FROM path JOIN {table} AS above
            ON above.document = :document AND above.number = path.parent AND above.number < path.number
        ) SELECT text FROM path""",
        {"document": document, "end": int(places["end"])},
    )
    texts = [text_of(text) for (text,) in found][::-1]
    if partial := places.get("partial"):
        texts.append(text_of(partial["text"]))
    return ("" if kind == "story" else "\n\n").join(texts)
