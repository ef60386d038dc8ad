"""Listing, finding, naming and deleting."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.history import collection
from llamatui.app.history.collection import Hit, Library
from llamatui.app.history.database import open_database, open_for_reading, writing
from llamatui.app.history.fulltext import match_of, refresh, to_index
from llamatui.app.history.saved import Entry, entry_from
from llamatui.errors import HistoryError, UsageError


def add(
    path: Path, uid: str, text: str, *, title: str = "a title", kind: str = "chat", at: float = 0
) -> None:
    """A document of one node, which nobody has indexed yet."""
    connection = open_database(path)
    with writing(connection):
        number = connection.execute(
            """INSERT INTO documents (uid, kind, title, created, changed, model, model_path, model_sha256,
            tokenizer, settings, state, revision) VALUES (?, ?, ?, ?, ?, 'm', '', '', '', '{}', ?, 1)""",
            (uid, kind, title, at, at, json.dumps({"end": 1})),
        ).lastrowid
        if kind == "chat":
            connection.execute("INSERT INTO turns VALUES (?, 1, 0, 'user', ?, NULL, 0)", (number, text))
        else:
            connection.execute("INSERT INTO tokens VALUES (?, 1, 0, 5, ?, 'writer', 0, 1)", (number, text))
    connection.close()


@pytest.fixture
def library(path: Path) -> Library:
    return Library(path)


def found(library: Library, text: str) -> list[str]:
    return [hit.entry.uid for hit in library.search(text)]


def marked(hit: Hit) -> list[str]:
    return [part for part, is_found in hit.snippet if is_found]


def test_where_there_is_no_history_looking_makes_none(library: Library) -> None:
    assert library.list() == library.search("hen") == []
    assert library.count() == 0
    with pytest.raises(UsageError, match="nothing in the history begins with ab"):
        library.load("ab")
    assert not library.path.exists()


def test_pinned_ones_come_first_then_the_newest(library: Library) -> None:
    for i, uid in enumerate("abc"):
        add(library.path, uid, "hen", at=i, kind="story" if uid == "b" else "chat")
    assert [entry.uid for entry in library.list()] == ["c", "b", "a"]
    library.pin("a")
    assert [entry.uid for entry in library.list()] == ["a", "c", "b"]
    assert [entry.uid for entry in library.list(limit=1, offset=1)] == ["c"]
    assert [entry.uid for entry in library.list("story")] == ["b"]
    assert (library.count(), library.count("chat")) == (3, 2)
    library.pin("a", False)
    assert not library.get("a").pinned


def test_a_uid_may_be_abbreviated_as_long_as_it_is_clear(library: Library) -> None:
    add(library.path, "abc1", "hen")
    add(library.path, "abd2", "hen")
    assert library.get("ABC").uid == "abc1"
    for uid, problem in (
        ("ab", "several"),
        ("x", "begins with x"),
        ("", "nothing"),
        ("%", "%"),
        ("\ud800", "nothing"),
    ):
        with pytest.raises(UsageError, match=problem):
            library.get(uid)


def test_all_words_must_be_there_or_words_that_begin_so(library: Library) -> None:
    add(library.path, "a", "The dragons ate a red ball.")
    add(library.path, "b", "A red hen.", title="Dragon and hen")
    assert found(library, "dragon") == ["b", "a"]
    assert found(library, "DRAGON ball") == ["a"]
    assert found(library, "agon") == []
    assert found(library, "dragons' red") == ["a"]
    assert found(library, "  ") == []


def test_accents_do_not_matter(library: Library) -> None:
    add(library.path, "a", "Le café est fermé à Nîmes")
    assert found(library, "cafe nimes") == found(library, "CAFÉ") == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "猫",
        "黒い猫",
        "い猫が",
        "が日本",
        "Tokyo",
        "Tokyoで",
        "고양이",
        "양이",
        "🦙",
        "で🦙",
        "🦙!",
        "แมว",
        "一",
    ],
)
def test_any_part_of_a_text_without_spaces_is_found(text: str, library: Library) -> None:
    add(library.path, "a", "黒い猫が日本のTokyoで🦙! 고양이는 แมวกิน 一")
    add(library.path, "b", "白い犬")
    assert found(library, text) == ["a"]
    assert found(library, f"{text}犬") == []


def test_what_was_found_is_marked_in_the_snippet(library: Library) -> None:
    add(library.path, "a", "word " * 60 + "\n\nthe  red dragon\tsleeps " + "word " * 60)
    add(library.path, "b", "長い" * 50 + "黒い猫がいる")
    (hit,) = library.search("red drag")
    assert marked(hit) == ["red", "dragon"]
    text = "".join([part for part, _ in hit.snippet])
    assert "the red dragon sleeps" in text
    assert text.startswith("…")
    assert len(text) < 150
    (hit,) = library.search("黒い猫")
    assert marked(hit) == ["黒い猫"]
    assert "\u200b" not in "".join([part for part, _ in hit.snippet])


def test_signs_alone_are_looked_for_as_they_stand(library: Library) -> None:
    add(library.path, "a", "so what?! " * 30 + "%_ end")
    add(library.path, "b", "so what? !", title="?!")
    assert found(library, "?!") == ["b", "a"]
    assert found(library, "%_") == ["a"]
    assert found(library, "_%") == []
    (hit,) = library.search("%_")
    assert marked(hit) == ["%_"]


def branching(path: Path) -> sqlite3.Connection:
    """A chat `a` and a story `b`, each with another branch than the one that is shown."""
    add(path, "a", "the hen", title="?!")
    add(path, "b", "the hen", kind="story")
    connection = open_database(path)
    for row in [(1, 2, 1, "assistant", "sat down", None, 0), (1, 3, 1, "assistant", "ran far?! x", None, 0)]:
        connection.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    for number, parent, text in [
        (2, 1, "house"),
        (3, 2, " ran"),
        (4, 1, " sat"),
        (5, 3, "ge"),
        (6, 3, " far"),
    ]:
        connection.execute("INSERT INTO tokens VALUES (2, ?, ?, 5, ?, 'model', 0, 0)", (number, parent, text))
    connection.execute("UPDATE documents SET state = json_object('end', iif(kind = 'chat', 2, 4))")
    return connection


def test_other_branches_are_found_too_and_told_from_what_is_shown(library: Library) -> None:
    branching(library.path).close()

    def hits(text: str) -> list[tuple[str, str, bool]]:
        return [
            (hit.entry.uid, "".join([part for part, _ in hit.snippet]), hit.shown)
            for hit in library.search(text)
        ]

    assert hits("sat") == [("b", "the hen sat", True), ("a", "sat down", True)]
    assert hits("ran") == [("b", "henhouse range", False), ("a", "ran far?! x", False)]
    assert hits("far") == [("b", "ran far", False), ("a", "ran far?! x", False)], "a whole word before it"
    assert [hit.entry.words for hit in library.search("henhouse")] == [3], "of what is shown"
    assert [hit[1:] for hit in hits("hen far")] == [("henhouse range", False), ("ran far?! x", False)]
    assert hits("?! x") == [("a", "ran far?! x", False)]
    assert hits("?!") == [("a", "the hen", True)], "in the title"
    assert library.search("?!", "story") == []


def test_what_is_shown_counts_however_often_another_branch_has_it(library: Library) -> None:
    connection = branching(library.path)
    connection.execute("INSERT INTO turns VALUES (1, 4, 1, 'assistant', 'Hens, hen, HEN, sat', NULL, 0)")
    connection.execute(
        "UPDATE turns SET content = 'hen ' || replace(hex(zeroblob(30)), '0', 'and ') WHERE number = 1"
    )
    (_, hit) = library.search("hen sat")
    assert (hit.entry.uid, hit.shown) == ("a", True)


def test_no_phrase_goes_on_in_the_next_message_or_branch(library: Library) -> None:
    add(library.path, "a", "小")
    connection = open_database(library.path)
    for number, text in enumerate(["狗 x", "東", "京"], 2):
        connection.execute(f"INSERT INTO turns VALUES (1, {number}, 1, 'user', '{text}', NULL, 0)")
    connection.execute("UPDATE documents SET state = json_object('end', 2)")
    assert (found(library, "小狗"), found(library, "東京")) == ([], [])
    assert (found(library, "小"), found(library, "京")) == (["a"], ["a"])
    (hit,) = library.search("狗")
    assert "".join([part for part, _ in hit.snippet]) == "狗 x"


def test_memory_note_and_system_prompt_are_found(library: Library) -> None:
    add(library.path, "a", "the hen")
    settings = json.dumps({"memory": "Max is old", "note": "briefly", "system": "be kind", "sampling": {}})
    open_database(library.path).execute("UPDATE documents SET settings = ?", (settings,))
    for word in ("max", "briefly", "kind", "hen"):
        assert found(library, word) == ["a"]
    assert found(library, "sampling") == []
    assert library.get("a").words == 2


@pytest.mark.parametrize("settings", ["[]", '"x"', "x", '{"note": 5}', '{"note": ["x"], "memory": {}}'])
def test_settings_that_make_no_sense_do_not_hide_the_text(settings: str, library: Library) -> None:
    add(library.path, "a", "the hen")
    open_database(library.path).execute("UPDATE documents SET settings = ?", (settings,))
    assert found(library, "hen") == ["a"]


@pytest.mark.parametrize("state", ["", "{}", "[]", '{"end": "x"}'])
def test_a_title_of_a_damaged_text_stays(state: str, library: Library) -> None:
    add(library.path, "a", "the hen")
    library.rename("a", "mine")
    open_database(library.path).execute("UPDATE documents SET state = ?", (state,))
    library.rename("a", "")
    assert library.get("a").title == "mine"


def test_the_order_is_by_time_whatever_was_renamed_and_pinned_ones_come_first(library: Library) -> None:
    for i, uid in enumerate("abc"):
        add(library.path, uid, "hen", at=i)
    assert found(library, "hen") == ["c", "b", "a"]
    library.rename("a", "old")
    assert found(library, "hen") == ["c", "b", "a"]
    library.pin("b")
    assert found(library, "hen") == ["b", "c", "a"]


OLD_INDEX = """
    DROP TABLE texts;
    CREATE VIRTUAL TABLE texts USING fts5 (title, text);
    INSERT INTO texts (rowid, title, text) VALUES (1, 'old', 'old');
    UPDATE documents SET place = 1, indexed = revision;
"""


@pytest.mark.parametrize("damage", ["", "DROP TABLE texts_config", "texts_data"])
def test_an_older_index_is_made_anew_and_nothing_else_is_touched(damage: str, library: Library) -> None:
    add(library.path, "a", "the hen")
    connection = open_database(library.path)
    connection.executescript(OLD_INDEX)
    connection.close()
    if damage == "texts_data":
        page_of(damage, library.path)
    else:
        with sqlite3.connect(library.path) as connection:
            connection.execute(damage)
    assert found(library, "hen") == ["a"]
    assert found(library, "old") == []
    assert open_database(library.path, check=True).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_older_index_that_cannot_be_written_is_told(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(library.path, "a", "the hen")
    connection = open_database(library.path)
    connection.executescript(OLD_INDEX)
    connection.close()
    monkeypatch.setattr(Library, "_connect", lambda self: open_for_reading(self.path))
    assert len(library.list()) == 1
    with pytest.raises(HistoryError, match="cannot be written: it is read-only"):
        library.search("hen")


def test_the_index_waits_for_who_needs_the_connection(library: Library) -> None:
    for uid in "abc":
        add(library.path, uid, "hen")
    connection = open_database(library.path)
    answers = iter([False, False, True])
    refresh(connection, lambda: next(answers))
    assert connection.execute("SELECT count(*) FROM texts").fetchone() == (2,)
    assert len(found(library, "hen")) == 3


def test_an_empty_name_lets_the_title_follow_the_text_again(library: Library) -> None:
    branching(library.path).close()
    for uid, title in ("a", "the hen"), ("b", "the hen sat"):
        library.rename(uid, "mine")
        library.rename(uid, " ")
        assert library.get(uid).title == title


@pytest.mark.parametrize("row", ["7, 9, '1'", "9, 9, '1'", "9, 9, ''", "2, 1, x'ff'"])
def test_rows_that_make_no_sense_do_not_hide_the_title(row: str, library: Library) -> None:
    add(library.path, "a", "hen", title="dog", kind="story")
    number, parent, text = row.split(", ")
    connection = open_database(library.path)
    connection.execute(f"INSERT INTO tokens VALUES (1, {number}, {parent}, 5, {text}, 'model', 0, 0)")
    assert found(library, "dog") == ["a"]
    connection.execute("UPDATE documents SET revision = 2, state = json_object('end', ?)", (int(number),))
    assert found(library, "dog") == ["a"]


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (text)")
    yield connection
    connection.close()


SYNTAX = [
    '"',
    'he said "',
    "hen*",
    "*",
    "AND",
    "hen AND",
    "NOT hen",
    "-hen",
    "title:hen",
    "NEAR(hen",
    "(",
    "^hen",
    "{",
    "a\0b",
]


@pytest.mark.parametrize("text", SYNTAX)
def test_nothing_is_syntax(text: str, library: Library) -> None:
    add(library.path, "a", f"it says {text} here")
    add(library.path, "b", "nothing")
    assert found(library, text) == ["a"]


@given(st.text())
def test_any_text_can_be_looked_for(connection: sqlite3.Connection, text: str) -> None:
    connection.execute("INSERT INTO texts VALUES (?)", (to_index(text),))
    if match := match_of(text):
        connection.execute("SELECT * FROM texts WHERE texts MATCH ?", (match,)).fetchall()


def test_a_thousand_words_can_be_looked_for(library: Library) -> None:
    add(library.path, "a", "hen " * 1000)
    assert found(library, "hen " * 1000) == ["a"]
    assert found(library, " ".join(f"w{i}" for i in range(1000))) == []


def test_what_changed_last_is_found_first(library: Library) -> None:
    for i, uid in enumerate("bca"):
        add(library.path, uid, "hen", at=i)
    assert found(library, "hen") == ["a", "c", "b"]
    connection = open_database(library.path)
    connection.execute("UPDATE documents SET revision = 2, changed = 9 WHERE uid = 'b'")
    assert found(library, "hen") == ["b", "a", "c"]
    assert len(library.search("hen", limit=2)) == 2
    assert library.search("hen", "story") == []


def test_a_search_while_somebody_writes_finds_what_is_indexed(library: Library) -> None:
    add(library.path, "a", "hen")
    assert found(library, "hen") == ["a"]
    add(library.path, "b", "hen")
    library.close()
    other = open_database(library.path)
    other.execute("BEGIN IMMEDIATE")
    connection = open_database(library.path, patience=0.01)
    library._connection, library._file = connection, library.path.stat()
    assert found(library, "hen") == ["a"]
    other.execute("COMMIT")
    assert found(library, "hen") == ["b", "a"]


def test_a_document_is_found_by_its_new_name(library: Library) -> None:
    add(library.path, "a", "hen")
    library.rename("a", "  Of mice\nand men ")
    assert library.get("a").title == "Of mice and men"
    assert found(library, "mice") == ["a"]
    assert found(library, "title") == []


def test_what_is_removed_is_gone_from_everywhere(library: Library) -> None:
    for uid in "ab":
        add(library.path, uid, "hen", kind="story")
    assert len(found(library, "hen")) == 2
    library.remove("a")
    assert found(library, "hen") == ["b"]
    connection = sqlite3.connect(library.path)
    assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM texts").fetchone() == (1,)


def test_where_nothing_can_be_written_it_can_be_read(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(library.path, "a", "hen")
    assert found(library, "hen") == ["a"]
    library.close()

    def refuse(*args: object) -> None:
        raise HistoryError("it is read-only")

    monkeypatch.setattr(collection, "open_database", refuse)
    with pytest.raises(HistoryError, match="it is read-only"):
        library.list()
    monkeypatch.setattr(collection.os, "access", lambda *args: False)
    assert found(library, "hen") == ["a"]
    for change in (lambda: library.rename("a", "b"), lambda: library.pin("a"), lambda: library.remove("a")):
        with pytest.raises(HistoryError, match="cannot be written"):
            change()


def test_a_new_file_in_the_place_of_the_old_one_is_noticed(library: Library) -> None:
    add(library.path, "a", "hen")
    assert library.count() == 1
    for file in library.path.parent.glob("history.db*"):
        file.unlink()
    assert library.count() == 0
    add(library.path, "b", "hen")
    assert found(library, "hen") == ["b"]


@pytest.mark.parametrize(
    "use",
    [
        lambda library: library.load("a"),
        lambda library: library.rename("a", "b"),
        lambda library: library.pin("a"),
        lambda library: library.remove("a"),
    ],
)
def test_a_file_that_goes_while_it_is_used_is_no_crash(
    use: Callable[[Library], object], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found_and_gone(row: Iterable[object]) -> Entry:
        for file in library.path.parent.glob("history.db*"):
            file.unlink()
        return entry_from(row)

    add(library.path, "a", "hen")
    monkeypatch.setattr(collection, "entry_from", found_and_gone)
    with suppress(HistoryError):
        use(library)
    assert library.count() == 0


def test_damage_is_told_where_it_is_met(library: Library) -> None:
    add(library.path, "a", "hen", title="title " * 50)
    connection = open_database(library.path)
    with writing(connection):
        for i in range(200):
            connection.execute(
                """INSERT INTO documents SELECT NULL, ?, kind, title, named, pinned, created, changed, model,
                model_path, model_sha256, tokenizer, settings, state, words, revision, indexed, NULL
                FROM documents WHERE uid = 'a'""",
                (f"b{i}",),
            )
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents'").fetchone()[0]
    connection.close()
    with library.path.open("r+b") as file:  # what its first page leads to is no page
        file.seek((root - 1) * 4096 + 8)
        file.write(b"\xff" * 4)
    with pytest.raises(HistoryError, match="damaged") as caught:
        library.list(limit=1000)
    assert "set aside" in caught.value.hint


def test_looking_sets_nothing_aside(library: Library) -> None:
    library.path.write_bytes(b"garbage " * 1000)
    for look in (library.list, library.count, lambda: library.search("hen"), lambda: library.latest("chat")):
        with pytest.raises(HistoryError, match="damaged"):
            look()
    assert library.path.read_bytes() == b"garbage " * 1000
    assert not list(library.path.parent.glob("*damaged*"))


def page_of(table: str, path: Path) -> None:
    """Damages the first page of a table."""
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xee" * 4096)


DAMAGED_INDEX = [
    "UPDATE texts_data SET block = x'0001020304050607' WHERE id = 10",
    "UPDATE texts_config SET v = 99",
    "DROP TABLE texts_config",
    "DROP TABLE texts_data",
    "DELETE FROM texts_content",
    "texts_data",
    "texts_content",
]


@pytest.mark.parametrize("damage", DAMAGED_INDEX)
@pytest.mark.parametrize("use", ["search", "remove", "write"])
def test_a_damaged_index_is_built_anew_and_the_rest_stays(damage: str, use: str, library: Library) -> None:
    for uid in "abc":
        add(library.path, uid, f"the hen {uid * 3}")
    assert len(found(library, "hen")) == 3
    library.close()
    if " " in damage:
        connection = sqlite3.connect(library.path)
        connection.execute(damage)
        connection.commit()
        connection.close()
    else:
        page_of(damage, library.path)
    assert len(library.list()) == 3
    if use == "search":
        assert found(library, "hen aaa") == ["a"]
    elif use == "remove":
        library.remove("c")
    else:
        connection = open_database(library.path, print, check=True)
        connection.execute("UPDATE documents SET revision = revision + 1 WHERE uid = 'a'")
        refresh(connection)
    assert sorted(found(library, "hen")) == [uid for uid in "abc" if (uid, use) != ("c", "remove")]
    assert len(found(library, "bbb")) == 1
    assert not list(library.path.parent.glob("*damaged*"))


def test_what_is_removed_leaves_no_words_in_the_files(library: Library) -> None:
    add(library.path, "a", "the hen zanzibar " * 500, title="zanzibar")
    add(library.path, "b", "the dog")
    assert found(library, "zanzibar") == ["a"]
    library.rename("a", "Zanzibar")
    assert found(library, "zanzibar") == ["a"]
    library.remove("a")
    for file in library.path.parent.glob("history.db*"):
        assert b"zanzibar" not in file.read_bytes().lower()
    assert found(library, "dog") == ["b"]


def test_the_latest_is_the_one_that_changed_last_pinned_or_not(library: Library) -> None:
    assert library.latest("chat") is None
    for i, uid in enumerate("abcd"):
        add(library.path, uid, "hen", at=min(i, 2), kind="story" if uid == "b" else "chat")
    library.pin("a")
    for kind, uid in (("chat", "d"), ("story", "b")):  # of two at one time, the one that came in last
        entry = library.latest(kind)  # type: ignore[arg-type]
        assert entry is not None
        assert entry.uid == uid


def test_what_is_no_number_or_title_still_lists(library: Library) -> None:
    add(library.path, "a", "hen")
    connection = open_database(library.path)
    connection.execute(
        "UPDATE documents SET title = x'ff', changed = 'soon', created = -1e300, words = 1e300"
    )
    (entry,) = library.list()
    assert (entry.title, entry.changed, entry.created, entry.words) == ("\ufffd", 0, 0, 0)
    assert found(library, "hen") == ["a"]
