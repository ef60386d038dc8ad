"""The lines around a room give way sensibly."""

import pytest
from textual.app import App

from llamatui.app.tui.bars import Header, Status, shortened


class Bars(App):
    def compose(self):
        yield Header("story")
        yield Status()


@pytest.mark.parametrize(
    ("cells", "expected"), [(21, "SmolLM2-135M-Instruct"), (15, "SmolLM2…nstruct"), (8, "Smol…uct")]
)
def test_a_long_name_loses_its_middle(cells, expected):
    short = shortened("SmolLM2-135M-Instruct", cells)
    assert short == expected
    assert len(short) <= cells


def shown(widget):
    """Its lines, with their padding."""
    return "\n".join(strip.text for strip in widget.render_lines(widget.outer_size.region))


@pytest.fixture
def line():
    """line(width, ...): the header at that width."""

    async def render(width, name, engine, soon="", rate=31.0, first=0.21):
        app = Bars()
        async with app.run_test(size=(width, 24)) as pilot:
            header = app.query_one(Header)
            header.show(name, engine, soon)
            header.show_rate(rate, first)
            await pilot.pause()
            return shown(header).splitlines()[0].rstrip()

    return render


ENGINE = ("numba", "2 threads")


async def test_there_is_room_for_all_of_it(line):
    text = await line(80, "stories15M", ENGINE)
    assert text.split() == "story stories15M · numba · 2 threads first 0.21 s · 31 tok/s".split()  # noqa: SIM905


@pytest.mark.parametrize(
    ("width", "soon", "there", "gone"),
    [
        (80, "preparing q8_0: quantizing 40 %", ["SmolLM2-", "preparing q8_0: quantizing 40 %"], ["first"]),
        (60, "", ["SmolLM2", "…", "31 tok/s"], []),
        (44, "", ["SmolLM2", "31 tok/s"], ["first", "threads"]),
        (24, "", ["story", "Smol"], ["numba"]),
    ],
)
async def test_what_matters_least_goes_first(width, soon, there, gone, line):
    text = await line(width, "SmolLM2-135M-Instruct-with-a-long-name", ENGINE, soon)
    assert len(text) <= width
    assert all(part in text for part in there), text
    assert not any(part in text for part in gone), text


@pytest.mark.parametrize("width", [100, 80, 60, 40, 30])
async def test_the_context_is_shown_at_any_width(width):
    app = Bars()
    async with app.run_test(size=(width, 24)) as pilot:
        status = app.query_one(Status)
        status.say("the end")
        status.show_context(512, 512, 312, "shift")
        await pilot.pause()
        text = shown(status)
        assert "512/512" in text
        assert "the end" in text
        if width >= 60:
            assert "312 forgotten" in text


async def test_the_policy_is_shown_always_and_louder_when_it_matters():
    app = Bars()
    async with app.run_test(size=(80, 24)) as pilot:
        status = app.query_one(Status)
        status.show_context(10, 512, 0, "stop")
        await pilot.pause()
        assert "stops when full · context 10/512" in shown(status)
        assert status.right.spans[0].style == "dim"
        status.show_context(500, 512, 0, "stop")
        await pilot.pause()
        assert "stops when full · context 500/512" in shown(status)
        assert status.right.spans[0].style == "$text-warning"
