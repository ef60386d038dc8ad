from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llamatui.tokenizers.merging import merge_pairs

Merges = dict[tuple[int, int], tuple[int, int]]

ids = st.integers(0, 5)
merge_tables = st.dictionaries(st.tuples(ids, ids), st.tuples(st.integers(0, 3), ids), max_size=20)


def one_by_one(tokens: list[int], merges: Merges) -> list[int]:
    """The definition: look at all pairs, merge the best, begin again."""
    tokens = list(tokens)
    while True:
        pairs = [(merges[pair][0], i) for i, pair in enumerate(pairwise(tokens)) if pair in merges]
        if not pairs:
            return tokens
        _, i = min(pairs)
        tokens[i : i + 2] = [merges[tokens[i], tokens[i + 1]][1]]


@given(tokens=st.lists(ids, max_size=30), merges=merge_tables)
def test_equals_its_definition(tokens: list[int], merges: Merges) -> None:
    assert merge_pairs(tokens, lambda a, b: merges.get((a, b))) == one_by_one(tokens, merges)


def test_a_long_run_takes_few_lookups() -> None:
    lookups = 0

    def merge(left: int, right: int) -> tuple[int, int] | None:
        nonlocal lookups
        lookups += 1
        return (left, left + 1) if left == right < 16 else None

    assert merge_pairs([0] * 65536, merge) == [16]
    assert lookups < 8 * 65536
