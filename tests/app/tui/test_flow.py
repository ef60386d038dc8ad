"""Wrapping that grows must be the same as wrapping all at once."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llamatui.app.tui.flow import Flow, printable, visible

STUFF = [
    "a",
    "llama ",
    "  ",
    "\n",
    "東京",
    "🦙",
    "👩‍👧",
    "e\u0301",
    "internationalization ",
    "x" * 30,
    "\u200b",
    ".\n\n",
    "—",
]


def lines(flow: Flow) -> list[str]:
    return [flow.text[slice(*flow.line(y))] for y in range(len(flow))]


@pytest.mark.parametrize("width", [1, 2, 7, 20, 72])
def test_growing_equals_wrapping_at_once(width):
    choose = random.Random(width)
    for _ in range(30):
        parts = [choose.choice(STUFF) for _ in range(choose.randrange(40))]
        grown = Flow(width)
        for part in parts:
            grown.append(part)
        at_once = Flow(width)
        at_once.append("".join(parts))
        assert grown.starts == at_once.starts
        resized = Flow(5)
        resized.append("".join(parts))
        resized.resize(width)
        assert resized.starts == at_once.starts
        cut = choose.randrange(len(grown.text) + 1)
        grown.truncate(cut)
        at_once = Flow(width)
        at_once.append("".join(parts)[:cut])
        assert grown.starts == at_once.starts


@pytest.mark.parametrize("width", [2, 7, 20])
def test_every_line_fits_and_no_word_is_lost(width):
    choose = random.Random(width)
    text = "".join(choose.choice(STUFF) for _ in range(300))
    flow = Flow(width)
    flow.append(text)
    shown = lines(flow)
    assert all(cell_len(line.rstrip()) <= width for line in shown)
    assert "".join("".join(shown).split()) == "".join(text.split())


def test_words_break_at_spaces_and_long_ones_inside():
    flow = Flow(10)
    flow.append("the little llama\n  indented\nabcdefghijklmno\n東京タワーへ行く")
    assert lines(flow) == [
        "the little", "llama", "  indented", "abcdefghij", "klmno", "東京タワー", "へ行く",
    ]  # fmt: skip


def test_appending_to_a_long_text_does_not_wrap_all_of_it(monkeypatch):
    flow = Flow(72)
    flow.append("word " * 10_000)
    wrapped = []
    wrap = flow._wrap
    monkeypatch.setattr(flow, "_wrap", lambda start: wrapped.append(len(flow.text) - start) or wrap(start))
    changed = flow.append("more")
    assert changed == len(flow) - 1
    assert sum(wrapped) < 2 * 72


@given(st.text())
def test_a_line_that_is_edited_keeps_its_length(line):
    assert len(visible(line)) == len(line)
    assert "\x1b" not in visible(line)


def test_printable():
    assert printable("a\tb\r\nc\x1b[0m\x00\x7f\x9b\x85d\u202ee\udc80") == "a    b\nc␛[0m␀␡�\nde�"
    assert printable("東京 🦙 é — ok\n") == "東京 🦙 é — ok\n"
