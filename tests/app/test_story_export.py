"""Files that a story is saved to."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llamatui.app.story_export import export_story, markdown, suggested_name
from llamatui.errors import LlamatuiError, UsageError


def test_plain_text_is_as_it_was(tmp_path: Path) -> None:
    path = export_story("One *day*\n\n  a llama 🦙", str(tmp_path / "a.txt"))
    assert path.read_bytes() == "One *day*\n\n  a llama 🦙\n".encode()


def shown(text: str) -> list[str]:
    """The lines that a reader of Markdown sees."""
    lines = []
    for token in MarkdownIt().parse(text):
        assert token.type in ("paragraph_open", "inline", "paragraph_close"), token.type
        if token.type == "inline":
            line = ""
            for child in token.children or []:
                assert child.type in ("text", "text_special", "hardbreak"), child.type
                line += "\n" if child.type == "hardbreak" else child.content
            lines += line.split("\n")
    return lines


@given(st.text('ab *_`#>-+=1.)[]<>&~!|\\\n"', max_size=40))
def test_markdown_shows_the_words_and_nothing_else(text: str) -> None:
    wanted = [" ".join(line.split()) for line in text.split("\n")]
    assert [" ".join(line.split()) for line in shown(markdown(text))] == [line for line in wanted if line]


def test_nothing_is_overwritten_unless_it_may_be(tmp_path: Path) -> None:
    name = str(tmp_path / "a.txt")
    export_story("one", name)
    with pytest.raises(FileExistsError):
        export_story("two", name)
    assert Path(name).read_text() == "one\n"
    export_story("two", name, overwrite=True)
    assert Path(name).read_text() == "two\n"


@pytest.mark.parametrize("name", ["story", "story.doc", ""])
def test_a_name_says_how(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"neither a \.txt nor a \.md"):
        export_story("x", str(tmp_path / name) if name else "")


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LlamatuiError, match="there is no folder"):
        export_story("x", str(tmp_path / "no" / "a.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(LlamatuiError, match="is a folder"):
        export_story("x", str(tmp_path / "folder.txt"), overwrite=True)


def test_a_tilde_of_nobody_is_a_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export_story("Once.", "~notes.txt") == tmp_path / "~notes.txt"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LlamatuiError, match="no permission"):
        export_story("x", str(tmp_path / "a.txt"))


def test_a_name_is_suggested_from_the_first_words() -> None:
    assert suggested_name('"Oh no!" said Lily. She ran home.') == "oh-no-said-lily-she-ran.txt"
    assert suggested_name("東京 🦙") == "東京.txt"
    assert suggested_name("...") == "story.txt"
