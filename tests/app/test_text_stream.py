"""Text comes out whole: no half characters, no part of a stop sequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.text_stream import StopMatcher


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    out = [matcher.push(piece) for piece in pieces]
    return [*out, matcher.flush()], matcher.matched


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        ([], ["a", "b"], ["a", "b", ""], None),
        (["END"], ["aE", "N", "Db"], ["a", "", "", ""], "END"),
        (["END"], ["aE", "N", "x"], ["a", "", "ENx", ""], None),
        (["END"], ["aEN"], ["a", "EN"], None),
        (["aab"], ["aaa", "b"], ["a", "", ""], "aab"),
        (["\n\n", "."], ["x\n", "y."], ["x", "\ny", ""], "."),
        (["b", "ab"], ["xab"], ["x", ""], "ab"),
        (["", "q"], ["abc"], ["abc", ""], None),
    ],
)
def test_stops(stops: list[str], pieces: list[str], shown: list[str], matched: str | None) -> None:
    assert feed(stops, pieces) == (shown, matched)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=12),
)
def test_what_is_shown_is_the_text_before_the_first_stop(stops: list[str], pieces: list[str]) -> None:
    shown, matched = feed(stops, pieces)
    text = "".join(pieces)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if matched is None:
        assert not found
        assert "".join(shown) == text
    else:
        # A stop is acted on as soon as it is whole, so an earlier but longer one may still have been open.
        assert text["".join(shown).__len__() :].startswith(matched)
        assert not any(stop in "".join(shown) for stop in stops)
