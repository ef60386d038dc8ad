"""How fast this machine reads memory: what bounds decoding, whose every token reads all weights."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 256 << 20  # far more than any cache holds
ROUNDS = 5


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read together, the best of some rounds; takes about 0.2 s."""
    parts = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, BUFFER_BYTES / (time.perf_counter() - began))
    return best
