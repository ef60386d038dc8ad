"""Chats as files."""

from types import SimpleNamespace

import pytest

from llamatui.app import chat_export
from llamatui.app.conversation import Turn
from llamatui.app.sampling import Sampling
from llamatui.app.tree import Tree
from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.chat_formats import CHATML, Message


@pytest.fixture
def chat():
    tree = Tree()
    for role, text in (
        ("user", "Hi, é!"),
        ("assistant", "```py\nx = 1"),
        ("user", "so?"),
        ("assistant", "ok"),
    ):
        tree.add(Turn(Message(role, text), stopped=text.startswith("`")))
    tree.cut(1)
    tree.add(Turn(Message("assistant", "other")))
    tree.go(tree.root.children[0].children[0].children[0].children[0])
    return SimpleNamespace(
        tree=tree, turns=[turn.message for turn in tree.path], system="be kind",
        model=SimpleNamespace(name="tiny"), format=CHATML,
    )  # fmt: skip


def test_the_whole_tree(chat):
    found = chat_export.document(chat, Sampling(seed=5))
    assert {key: found[key] for key in ("schema", "model", "chat_format", "system", "shown")} == {
        "schema": "llamatui.chat/1", "model": "tiny", "chat_format": "chatml", "system": "be kind",
        "shown": [0, 1, 2, 3],
    }  # fmt: skip
    assert found["sampling"]["seed"] == 5
    assert [(node["parent"], node["text"], node.get("stopped")) for node in found["nodes"]] == [
        (None, "Hi, é!", None), (0, "```py\nx = 1", True), (1, "so?", None), (2, "ok", None),
        (0, "other", None),
    ]  # fmt: skip


def test_what_is_shown(chat):
    assert chat_export.markdown(chat) == (
        "# A chat with tiny\n\n*System prompt:* be kind\n\n## You\n\nHi, é!\n\n"
        "## tiny\n\n```py\nx = 1\n```\n\n## You\n\nso?\n\n## tiny\n\nok\n"
    )
    assert chat_export.plain(chat).startswith("System: be kind\n\nYou: Hi, é!\n\ntiny: ```py\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~~~\na\n```", "~~~\na\n```\n~~~"),
        ("````\n```\n", "````\n```\n\n````"),
        ("```\na\n```", "```\na\n```"),
        ("``` not `code`", "``` not `code`"),
        ("plain", "plain"),
    ],
)
def test_an_unfinished_code_block_is_closed(text, expected):
    assert chat_export.closed(text) == expected


def test_nothing_is_overwritten_and_errors_are_clear(chat, tmp_path):
    path = tmp_path / "a.json"
    chat_export.save(chat, Sampling(), str(path))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="there already"):
        chat_export.save(chat, Sampling(), str(path))
    assert path.read_bytes() == before
    for write, name in (
        (chat_export.save, "a.md"),
        (chat_export.export, "a.json"),
        (chat_export.export, "a"),
    ):
        with pytest.raises(UsageError, match="ends in"):
            write(chat, Sampling(), name)
    for name, reason in (("no/such/folder/a.txt", "there is no folder"), ("a\0.txt", "cannot be written")):
        with pytest.raises(LlamatuiError, match=reason):
            chat_export.export(chat, Sampling(), str(tmp_path / name))


def test_the_end_of_a_name_may_be_in_capitals(chat, tmp_path):
    chat_export.save(chat, Sampling(), str(tmp_path / "a.JSON"))
    for end, begin in ((".MD", "# A chat with tiny"), (".Txt", "System: be kind")):
        path = chat_export.export(chat, Sampling(), str(tmp_path / f"a{end}"))
        assert path.read_text("utf-8").startswith(begin)


def test_a_tilde_of_nobody_is_a_part_of_the_name(chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chat_export.export(chat, Sampling(), "~notes.txt") == tmp_path / "~notes.txt"


def test_names_that_are_free(chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chat_export.free_name(chat, ".md") == "hi-é.md"
    (tmp_path / "hi-é.md").touch()
    assert chat_export.free_name(chat, ".md") == "hi-é-2.md"
    chat.turns[0] = Message("user", "../" * 20 + "word " * 30)
    assert chat_export.free_name(chat, ".md") == "word-word-word-word-word-word.md"
    chat.turns[0] = Message("user", "???")
    assert chat_export.free_name(chat, ".md") == "chat.md"
