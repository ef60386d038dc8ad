"""Markdown that streams: the same as if it had come at once, nothing lost, nothing obeyed."""

import asyncio
import random

import pytest
from textual.app import App
from textual.containers import VerticalScroll
from textual.widgets import Label, Static

from llamatui.app.tui.answer_markdown import AnswerMarkdown, Code, code_blocks, parser

DOCUMENTS = {
    "fence": "Look:\n\n```python\nfor i in range(3):\n\n    print(i)\n```\n\nThat is *it*.",
    "unfinished fence": "Look:\n\n```python\nfor i in range(3):\n\n    print(",
    "tildes": "~~~\na ``` b\n```\n~~~\nafter",
    "fence in a list": (
        "1. one\n\n   ```sh\n   ls -l\n   ```\n\n"
        "2. two\n   - three\n     - four\n\n     ```\n     x\n     ```\n\nend"
    ),
    "nested lists": "- a\n  - b\n    1. c\n    2. d\n- e\n\n  more of e\n\n* f",
    "table": "Before\n\n| a | b |\n|---|:-:|\n| 1 | [red]2[/] |\n| 3 |\n\nafter",
    "html": "one\n\n<div>\n<b>two</b>\n</div>\n\nthree <i>four</i>\n\n<!-- five\n\nsix",
    "references": "see [this][a]\n\n[a]: http://example.com\n\nand [a] again",
    "headings": "# One\ntwo\n===\nthree\n---\n\n- - -\nfour\n- five",
    "quotes": "> one\n> - two\n>\n> ```\n> three\n> ```\nlazy\n\n> > deep",
    "markup": "[bold]no[/] [@click=app.quit]quit[/] `[red]` **[/b]**\n\n```\n[link=x]\n```",
    "numbers": "1986. year\n1) other\n\n3. three\n4. four",
    "escapes": "a \\* b &amp; <http://x.y> ![alt](u) ~~gone~~ www.example.com\\\nnext  \nline",
    "emoji": "🦙🏽 *日本語* **한국어** — é\n\n- 👩‍👩‍👧‍👧 `コード`",
}


def blocks(markdown):
    """All that can be seen of it: places and texts."""
    top = markdown.region.offset
    return [
        (widget.region.translate(-top), str(widget.render()))
        for widget in markdown.walk_children()
        if isinstance(widget, Static) or hasattr(widget, "symbol")
    ]


class Page(App[None]):
    def compose(self):
        with VerticalScroll():
            yield AnswerMarkdown()


async def stream(pilot, text, cuts):
    """A new widget that gets `text` in pieces."""
    markdown = AnswerMarkdown()
    await pilot.app.query_one(VerticalScroll).mount(markdown)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        await markdown.write(text[start:end])
        if random.random() < 0.7:
            await asyncio.sleep(0)
    await markdown.finish()
    await pilot.pause()
    return markdown


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_stream_ends_as_what_comes_at_once(name):
    text = DOCUMENTS[name]
    random.seed(name)
    async with Page().run_test(size=(60, 60)) as pilot:
        whole = AnswerMarkdown(text)
        await pilot.app.query_one(VerticalScroll).mount(whole)
        await pilot.pause()
        expected = blocks(whole)
        await whole.remove()
        for cuts in (range(1, len(text)), sorted(random.sample(range(1, len(text)), 5))):
            streamed = await stream(pilot, text, list(cuts))
            assert blocks(streamed) == expected
            assert streamed.source == text
            await streamed.remove()


async def test_only_the_beginning_of_a_line_waits():
    async with Page().run_test() as pilot:
        markdown = pilot.app.query_one(AnswerMarkdown)
        shown = []
        for piece in ("one", " ", "-", "\n", "-", " ", "two", "\n3."):
            await markdown.write(piece)
            await pilot.pause()
            shown.append(markdown.source)
        assert shown == [
            "one",
            "one ",
            "one -",
            "one -\n",
            "one -\n",
            "one -\n",
            "one -\n- two",
            "one -\n- two\n",
        ]
        await markdown.finish()
        await markdown.write(" ")  # it goes on
        await markdown.finish()
        assert markdown.source == "one -\n- two\n3. "


async def test_nothing_that_was_said_is_lost():
    text = DOCUMENTS["html"]
    async with Page().run_test(size=(60, 60)) as pilot:
        markdown = await stream(pilot, text, list(range(1, len(text))))
        shown = " ".join(part[1] for part in blocks(markdown))
        for word in ("one", "<div>", "<b>two</b>", "three", "<i>four</i>", "<!-- five", "six"):
            assert word in shown


async def test_markup_stays_text():
    async with Page().run_test(size=(60, 60)) as pilot:
        markdown = await stream(pilot, DOCUMENTS["markup"], [7, 30])
        shown = [part[1] for part in blocks(markdown)]
        assert shown[0] == "[bold]no[/] [@click=app.quit]quit[/] [red] [/b]"
        assert "[link=x]" in shown


async def test_long_lines_of_code_wrap():
    async with Page().run_test(size=(40, 30)) as pilot:
        markdown = AnswerMarkdown("```\n" + "abcdefghi " * 20 + "x" * 100 + "END\n```")
        await pilot.app.query_one(VerticalScroll).mount(markdown)
        await pilot.pause()
        label = markdown.query_one(Label)
        shown = "".join(strip.text.strip() for strip in label.render_lines(label.region.size.region))
        assert shown.count("abcdefghi") == 20
        assert shown.endswith("x" * 100 + "END")
        assert markdown.query_one(Code).region.width <= 40


async def test_a_line_that_may_become_anything_waits():
    async with Page().run_test(size=(40, 30)) as pilot:
        markdown = AnswerMarkdown()
        await pilot.app.query_one(VerticalScroll).mount(markdown)
        await markdown.write("some words\n-")
        await pilot.pause()
        assert markdown.source == "some words\n"
        await markdown.write("- dash")
        await pilot.pause()
        assert markdown.source == "some words\n-- dash"
        await markdown.write("\n---")
        await markdown.finish()
        assert markdown.source == "some words\n-- dash\n---"


def test_code_blocks():
    assert code_blocks(DOCUMENTS["fence in a list"]) == ["ls -l\n", "x\n"]
    assert code_blocks("text\n\n```py\nunfinished") == ["unfinished"]
    assert code_blocks("    indented\n") == ["indented\n"]
    assert code_blocks("`inline`") == []


async def test_a_table_cell_under_the_mouse_is_no_markup():
    async with Page().run_test(size=(60, 60), tooltips=True) as pilot:
        markdown = AnswerMarkdown("| a | b |\n|---|---|\n| [@click=f( | x |\n")
        await pilot.app.query_one(VerticalScroll).mount(markdown)
        assert not [cell for cell in markdown.query(".cell, .header") if isinstance(cell.tooltip, str)]


def test_a_file_name_is_no_link():
    assert "<a" not in parser().render("Run main.py, see README.md and https://example.org.")
