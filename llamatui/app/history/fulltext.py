"""Finding words in the history: what is put into the index, and what a person's words ask of it.

FTS5 finds whole words, and beginnings of them. Scripts that put no spaces between words are indexed sign by
sign, so that any part of a sentence is found there: an invisible space stands between signs, in the index
alone. SQLite's own trigram tokenizer would do so for all scripts, but finds nothing shorter than three signs,
and its index is several times as big.

What changed last is found first, because that costs nothing: a document that is indexed again gets a new
place behind all others, and FTS5 walks the places backwards until it has enough. To rank ten thousand
documents by how often they say "the" would take longer than one wants to wait for a key.
"""

import json
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from llamatui.app.history.database import TEXTS, is_damage, writing
from llamatui.app.history.rows import UNREADABLE, readable, spoken, text_of

MARKS = "\ue000", "\ue001"  # around what was found; for private use, so in nobody's text
BETWEEN = (
    "\n\ue002\n"  # messages or branches: a word for the index, so that no phrase goes on in the next one
)
WORDS_SHOWN = 16
MOST_WORDS = 32  # that are looked for
BESIDE = "memory", "note", "system"  # settings that somebody has written

_SPACE = "\u200b"
# Thai to Burmese, Khmer, symbols, kana and Hangul, Han, pictures.
_SIGN = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2190-\u2bff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
_BESIDE_SIGN = re.compile(f"(?<=[{_SIGN}])(?=\\S)|(?<=\\S)(?=[{_SIGN}])")
_ENDS_IN_SIGN = re.compile(f"[{_SIGN}]$")
_UNSPEAKABLE = re.compile("[\0\ud800-\udfff\ue000-\ue002\u200b]")

Parts = tuple[tuple[str, bool], ...]
"""A text in pieces; True: that is what was looked for."""

T = TypeVar("T")


def to_index(text: str) -> str:
    return _BESIDE_SIGN.sub(_SPACE, _UNSPEAKABLE.sub(" ", text))


def match_of(text: str) -> str:
    """The FTS5 expression that finds documents with all words of `text`; "" if it has none.

    A word finds those that begin with it. Nothing in `text` is syntax.
    """
    words = dict.fromkeys(word for word in text.replace('"', " ").split() if any(map(_is_word, word)))
    return " ".join([_phrase(word) for word in words][:MOST_WORDS])


def _is_word(character: str) -> bool:
    """As the index has it: see `tokenize` in the schema."""
    kind = unicodedata.category(character)
    return kind[0] in "LN" or kind in ("Co", "So")


def _phrase(word: str) -> str:
    # A letter alone would be the beginning of a tenth of all words, which takes long and finds nothing.
    begins = len(word) > 1 and not _ENDS_IN_SIGN.search(word)
    return f'"{to_index(word)}"{"*" if begins else ""}'


def snippet(text: str) -> Parts:
    """The pieces of what FTS5's `snippet` gave, on one line: of one message or branch."""
    spoken = text.split(BETWEEN.strip())
    found = next((piece for piece in spoken if MARKS[0] in piece), spoken[0])
    line = " ".join(found.replace(_SPACE, "").split())
    parts: list[tuple[str, bool]] = []
    for i, piece in enumerate(line.split(MARKS[0])):
        found, _, rest = piece.partition(MARKS[1]) if i else ("", "", piece)
        parts += [(part, is_found) for part, is_found in ((found, True), (rest, False)) if part]
    return tuple(parts)


def with_index(connection: sqlite3.Connection, use: Callable[[], T]) -> T:
    """What `use` gives, which needs the index. One that is damaged, or of an older version, is begun anew."""
    try:
        return use()
    except sqlite3.DatabaseError as error:
        is_older = "no such column: others" in str(error)
        if not (is_older or is_damage(error) or "fts5" in str(error) or "vtable" in str(error)):
            raise
        _begin_anew(connection, is_older and _is_whole(connection))
        return use()


def check_index(connection: sqlite3.Connection) -> None:
    """Raises what `with_index` expects where an older llamatui has made the index."""
    connection.execute("SELECT others FROM texts LIMIT 0")


def _is_whole(connection: sqlite3.Connection) -> bool:
    """Whether no page of the index is damaged."""
    parts = connection.execute("SELECT name FROM sqlite_master WHERE name GLOB 'texts_*'").fetchall()
    return all(connection.execute(f"PRAGMA quick_check({part})").fetchone() == ("ok",) for (part,) in parts)


def _begin_anew(connection: sqlite3.Connection, is_whole: bool) -> None:
    """An empty index, which `refresh` fills. To drop the old one, SQLite has to read it."""
    with writing(connection):
        if is_whole:
            connection.execute("DROP TABLE texts")
        else:
            connection.execute("PRAGMA writable_schema = ON")
            try:
                connection.execute("DELETE FROM sqlite_master WHERE name = 'texts' OR name GLOB 'texts_*'")
            finally:
                connection.execute("PRAGMA writable_schema = RESET")
        connection.execute(TEXTS)
        connection.execute("UPDATE documents SET indexed = -1, place = NULL")
    if not is_whole:
        with suppress(sqlite3.Error):  # in use elsewhere, or no room: its pages stay in the file
            connection.execute("VACUUM")


def refresh(connection: sqlite3.Connection, is_over: Callable[[], bool] = lambda: False) -> None:
    """Brings the index up to date, and the numbers of words: writers leave both behind while a text grows.

    A document that cannot be read is found by its title.

    Args:
        is_over: Whether somebody waits for the connection: the rest is left for the next time.
    """
    with_index(connection, partial(_refresh, connection, is_over))


def _refresh(connection: sqlite3.Connection, is_over: Callable[[], bool]) -> None:
    check_index(connection)
    stale = "SELECT id FROM documents WHERE indexed <> revision ORDER BY changed"
    documents = connection.execute(stale).fetchall()
    if not documents:
        return
    from llamatui.app.story import count_words  # imports NumPy, for which a search need not wait

    for (document,) in documents:
        if is_over():
            return
        with writing(connection):
            found = connection.execute(
                """SELECT kind, title, settings, state, revision, indexed, place
                FROM documents WHERE id = ? AND indexed <> revision""",
                (document,),
            ).fetchone()
            if found is None:  # it is gone, or somebody else has done it
                continue
            kind, title, settings, state, revision, indexed, place = found
            shown, beside, others = list[str](), list[str](), list[str]()
            with suppress(*UNREADABLE):
                shown, others = spoken(connection, document, kind, state)
            with suppress(*UNREADABLE):
                values = json.loads(settings)
                beside = [text_of(values[name]) for name in BESIDE if values.get(name)]
            connection.execute("DELETE FROM texts WHERE rowid = ?", (place,))
            if indexed != -1 or place is None:  # not only its title is another
                (place,) = connection.execute("SELECT ifnull(max(place), 0) + 1 FROM documents").fetchone()
            columns = [BETWEEN.join(map(to_index, texts)) for texts in ([*shown, *beside], others)]
            connection.execute(
                "INSERT INTO texts (rowid, title, text, others) VALUES (?, ?, ?, ?)",
                (place, to_index(readable(title)), *columns),
            )
            connection.execute(
                "UPDATE documents SET indexed = ?, words = ?, place = ? WHERE id = ?",
                (revision, sum(map(count_words, shown)), place, document),
            )


def remove(connection: sqlite3.Connection, uid: str) -> None:
    """Deletes a document, also from the index."""
    connection.execute("DELETE FROM texts WHERE rowid = (SELECT place FROM documents WHERE uid = ?)", (uid,))
    connection.execute("DELETE FROM documents WHERE uid = ?", (uid,))


def around(text: str, sought: str) -> Parts:
    """A piece of `text` around the first place where `sought` stands as it is."""
    text = text.replace(_SPACE, "")
    at = text.find(sought)
    if at < 0:  # it stands in the title
        at, sought = 0, ""
    begin, end = max(at - 4 * WORDS_SHOWN, 0), at + len(sought) + 4 * WORDS_SHOWN
    cut = f"{text[begin:at]}{MARKS[0]}{sought}{MARKS[1]}{text[at + len(sought) : end]}"
    return snippet(f"{'…' if begin else ''}{cut}{'…' if end < len(text) else ''}")
