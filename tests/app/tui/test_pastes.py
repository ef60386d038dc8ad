"""What is pasted stays text, also where it holds what keys send."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from textual import events
from textual.drivers import linux_driver

from llamatui.app.tui.pastes import BEGIN, END, PasteParser, safe_driver

PIECES = st.sampled_from(
    ["\x1b", "[", "2", "0", "1", "~", "\x1b[31m", "\x11", "\x07", "/quit\r", "ü", " word"]
)


def parsed(parts):
    """What comes of data that arrives in these parts."""
    parser = PasteParser()
    return [event for part in parts for event in parser.feed(part)]


def cut(text, places):
    at = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(at)]


@given(text=st.lists(PIECES).map("".join), places=st.lists(st.integers(0, 99)))
@example(text="one \x1b[31mred\x1b[0m two\r/quit\rthree", places=[])
@example(text="\x1b[20", places=[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
def test_a_paste_is_one_text(text, places):
    text = text.replace(END, "")
    found = parsed(["a", *cut(f"{BEGIN}{text}{END}", places), "b"])
    keys = [event.key for event in found if isinstance(event, events.Key)]
    pastes = [event.text for event in found if isinstance(event, events.Paste)]
    assert keys == ["a", "b"]
    assert pastes == ([text.replace("\x1b", "␛")])


def test_keys_are_keys():
    parser = PasteParser()
    found = [*parser.feed("x\x1b[A\x1b[1;5D"), *parser.feed("\x1b[B\x1b")]
    assert [event.key for event in found] == ["x", "up", "ctrl+left", "down"]  # an ESC may begin a key


def test_the_terminal_s_driver_has_it(monkeypatch):
    monkeypatch.setattr(linux_driver, "XTermParser", linux_driver.XTermParser)
    assert safe_driver(linux_driver.LinuxDriver) is linux_driver.LinuxDriver
    assert linux_driver.XTermParser is PasteParser
