"""`llamatui history`: the whole command, in its own process where the exit code matters."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llamatui.app.cli.history import app, complete_uid
from llamatui.app.cli.main import run
from llamatui.app.conversation import Conversation
from llamatui.app.history.collection import Library
from llamatui.app.history.database import database_path, open_database
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.kv_store import KVStore
from llamatui.app.model import load_model
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from llamatui.errors import HistoryError, LlamatuiError, UsageError


@pytest.fixture
def kept(tiny_model: Path) -> list[str]:
    """uids of a story and a chat in the user's history."""
    model = load_model(tiny_model, backend="numpy", threads=1, chat_format="llama2")
    story, chat = Story(model, None, "stop"), Conversation(model, "be kind")
    story.write("Once *upon* a time\x1b[2J")
    chat.ask("Who are you?")
    chat.finish([], "A hen.")
    documents = [Document(story, Sampling(seed=5)), Document(chat, Sampling())]
    recorder = Recorder()
    for document in documents:
        recorder.save(document)
        assert recorder.flush()
    recorder.close()
    return [document.uid for document in documents]


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def test_without_a_history_it_says_so_in_a_friendly_way() -> None:
    result = ask("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing here yet" in result.stderr
    assert json.loads(ask("list", "--json").stdout) == []
    assert ask("search", "hen").exit_code == 0
    assert not database_path().exists()


def test_the_list_has_a_line_for_each(kept: list[str]) -> None:
    head, chat, story = ask("list").stdout.splitlines()
    assert head.split() == ["id", "kind", "title", "words", "model", "when"]
    assert chat.split()[:5] == [kept[1][:8], "chat", "Who", "are", "you?"]
    assert story.split()[:2] == [kept[0][:8], "story"]
    assert " tiny " in story
    assert len(ask("list", "--kind", "story").stdout.splitlines()) == 2
    few = ask("list", "-n", "1")
    assert len(few.stdout.splitlines()) == 2
    assert "1 more: -n 2" in few.stderr
    rows = json.loads(ask("list", "--json").stdout)
    assert [row["uid"] for row in rows] == kept[::-1]
    assert rows[1]["words"] == 4
    assert rows[1]["changed"].endswith("+00:00")


def test_a_wrong_kind_is_told() -> None:
    with pytest.raises(UsageError, match="story or chat, found 'poem'"):
        ask("list", "--kind", "poem")


def test_show_prints_the_text(kept: list[str]) -> None:
    assert ask("show", kept[0][:6]).stdout == "Once *upon* a time\x1b[2J\n"
    assert ask("show", kept[1]).stdout == "System: be kind\n\nYou: Who are you?\n\ntiny: A hen.\n"
    content = json.loads(ask("show", kept[0], "--json").stdout)
    assert (content["schema"], content["kind"], content["sampling"]["seed"]) == (
        "llamatui.story/1",
        "story",
        5,
    )
    assert "".join(node["text"] for node in content["nodes"]) == "Once *upon* a time\x1b[2J"
    assert json.loads(ask("show", kept[1], "--json").stdout)["schema"] == "llamatui.chat/1"


def test_what_is_shown_in_a_terminal_does_not_drive_it(
    kept: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamatui.app.cli import history

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    history.show(kept[0])
    history.search(["upon"])
    assert "\x1b" not in capsys.readouterr().out
    history.list_()
    assert "\x1b[2J" not in capsys.readouterr().out


def test_search_shows_where(kept: list[str]) -> None:
    out = ask("search", "upon", "ti").stdout
    assert out.startswith(f"{kept[0][:8]}  Once *upon* a time")
    assert "Once *upon* a time" in out.splitlines()[1]
    (hit,) = json.loads(ask("search", "hen", "--json").stdout)
    assert hit["uid"] == kept[1]
    assert "A hen." in hit["snippet"]
    assert hit["shown"]
    connection = open_database(database_path())
    connection.execute("UPDATE documents SET title = 'it', state = json_set(state, '$.end', 0), indexed = -1")
    connection.close()
    assert ask("search", "upon").stdout.splitlines()[1].startswith("          other branch: Once *upon* a")
    assert not json.loads(ask("search", "hen", "--json").stdout)[0]["shown"]
    nothing = ask("search", "zebra")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "nothing found\n")
    assert ask("search", "hen", "--kind", "story").stdout == ""


def test_export_writes_what_the_name_says(
    kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    story, chat = kept
    for uid, name, begin in (
        (story, "a.txt", "Once *upon* a time"),
        (story, "a.md", "Once \\*upon\\* a time"),
        (story, "a.json", '{\n "schema": "llamatui.story/1"'),
        (chat, "b.txt", "System: be kind"),
        (chat, "b.md", "# A chat with tiny"),
        (chat, "b.json", '{\n "schema": "llamatui.chat/1"'),
    ):
        assert name in ask("export", uid, name).stderr
        assert Path(name).read_text("utf-8").startswith(begin)
    ask("export", story)
    assert Path("once-upon-a-time-2j.txt").exists()
    assert json.loads(ask("export", chat, "--json").stdout)["file"] == str(tmp_path / "who-are-you.md")


def test_export_overwrites_only_if_told(kept: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        ask("export", kept[0], str(file))
    assert file.read_text() == "mine"
    ask("export", kept[0], str(file), "--force")
    assert file.read_text().startswith("Once")
    with pytest.raises(UsageError, match=r"\.txt, \.md or \.json"):
        ask("export", kept[0], str(tmp_path / "a.doc"))


def test_rm_asks_only_where_somebody_is(kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nobody is there") as caught:
        ask("rm", kept[0][:8])
    assert f"history rm -y {kept[0][:8]}" in caught.value.hint
    with pytest.raises(UsageError, match="begins with zz"):
        ask("rm", "-y", kept[0], "zz")
    assert Library().count() == 2
    assert json.loads(ask("rm", "-y", "--json", kept[0], kept[0][:7]).stdout)[0]["uid"] == kept[0]
    assert [entry.uid for entry in Library().list()] == [kept[1]]
    from llamatui.app.cli import history

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(history.typer, "confirm", lambda *args, **options: True)
    history.rm([kept[1]])
    assert Library().count() == 0


def test_who_looks_at_a_damaged_history_is_told_and_leaves_it_alone() -> None:
    database_path().parent.mkdir(parents=True)
    database_path().write_bytes(b"garbage " * 1000)
    for command in (["list"], ["search", "hen"], ["show", "abc"], ["rm", "-y", "abc"]):
        with pytest.raises(HistoryError, match="damaged") as caught:
            ask(*command)
        assert "as soon as you write" in caught.value.hint
    assert complete_uid("a") == []
    assert [path.name for path in database_path().parent.glob("*.db")] == ["history.db"]


def test_rm_leaves_nothing_that_a_model_has_read(kept: list[str], home: Path) -> None:
    store = KVStore()
    store.folder.mkdir(parents=True)
    (store.folder / "text.kv").touch()
    ask("rm", "-y", kept[0])
    assert not list(home.rglob("*.kv"))


def test_what_a_row_says_does_not_drive_the_terminal(kept: list[str]) -> None:
    with sqlite3.connect(database_path()) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE documents SET kind = char(27) || ']0;x'")
    connection.close()
    assert "\x1b" not in ask("list").stdout


def test_export_into_the_home_folder_and_into_none(kept: list[str], home: Path) -> None:
    ask("export", kept[0], "~/a.txt")
    assert (home / "a.txt").exists()
    with pytest.raises(LlamatuiError, match="there is no folder"):
        ask("export", kept[0], "~/none/a.txt")


def test_a_document_that_is_damaged_is_told(kept: list[str]) -> None:
    with sqlite3.connect(database_path()) as connection:
        connection.execute("UPDATE documents SET state = '!'")
    with pytest.raises(HistoryError, match="is damaged in the history"):
        ask("show", kept[0])


def test_it_is_a_command_of_llamatui(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llamatui", "history", "show", "abc"])
    assert run() == 2
    assert "nothing in the history begins with abc" in capsys.readouterr().err
