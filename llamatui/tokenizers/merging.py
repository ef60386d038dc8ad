"""Byte-pair merging in O(n log n): the one loop behind every BPE vocabulary here."""

import heapq
from collections.abc import Callable, Sequence


def merge_pairs(ids: Sequence[int], merge: Callable[[int, int], tuple[int, int] | None]) -> list[int]:
    """Merges neighbours, the lowest rank first and the leftmost of equals, until no pair can merge.

    Args:
        ids: Token ids of the smallest pieces, in order.
        merge: Rank (0 or more) of a pair of ids and the id it becomes, or None.
    """
    n = len(ids)
    tokens = list(ids)
    following = list(range(1, n + 1))  # linked list over positions; n ends it
    preceding = list(range(-1, n - 1))
    alive = [True] * n
    # rank * n + position in one int: orders like (rank, position), and compares much faster.
    heap = [found[0] * n + i for i in range(n - 1) if (found := merge(tokens[i], tokens[i + 1]))]
    heapq.heapify(heap)
    while heap:
        rank, left = divmod(heapq.heappop(heap), n)
        right = following[left]
        if not alive[left] or right == n:
            continue
        # What stands here may have changed since. If it has the same rank, merging it is still right.
        found = merge(tokens[left], tokens[right])
        if not found or found[0] != rank:
            continue
        tokens[left] = found[1]
        alive[right] = False
        following[left] = after = following[right]
        if after < n:
            preceding[after] = left
            if found := merge(tokens[left], tokens[after]):
                heapq.heappush(heap, found[0] * n + left)
        before = preceding[left]
        if before >= 0 and (found := merge(tokens[before], tokens[left])):
            heapq.heappush(heap, found[0] * n + before)
    return [token for token, kept in zip(tokens, alive, strict=True) if kept]
