"""Our side of benchmarks/speed.py: one backend in a process of its own.

    python benchmarks/worker.py BACKEND MODEL THREADS

A line of stdin is a `Test` as JSON; the answer is a line of stdout, tokens per second. It sleeps in between.
"""

import json
import sys
import time
from typing import TYPE_CHECKING

from contestants import Test

from llamatui.backends.threads import limit_blas_threads
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:  # NumPy must not be imported before its threads are limited
    from llamatui.backends.base import Backend, KVCache


def main() -> int:
    name, model, threads = sys.argv[1:]
    limit_blas_threads(int(threads))

    from llamatui.backends.checkpoint import Checkpoint
    from llamatui.backends.registry import create_backend

    try:
        backend = create_backend(name, Checkpoint(model), int(threads))
        prefixes: dict[int, KVCache] = {}
        for line in sys.stdin:
            test = Test(**json.loads(line))
            speed = whole_loop(backend, test) if test.argmax else forward_only(backend, test, prefixes)
            print(speed, flush=True)
    except LlamatuiError as error:
        print(f"{name}: {error.message}. {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def whole_loop(backend: "Backend", test: Test) -> float:
    """The app's own loop. As in run.c, the clock starts after the first token."""
    from llamatui.app.engine import Limits, Session
    from llamatui.app.sampler import Sampler
    from llamatui.app.sampling import Sampling

    generation = Session(backend).start([1], Sampler(Sampling(temperature=0.0)), Limits(test.tokens))
    for _record in generation:
        pass
    return generation.timings.decode_tps


def forward_only(backend: "Backend", test: Test, prefixes: "dict[int, KVCache]") -> float:
    """Random ids, no sampling, as llama-bench. `prefixes`: caches filled before, by depth."""
    import numpy as np

    from llamatui.backends.base import KVCache

    ids = np.random.default_rng(0).integers(backend.config.vocab_size, size=test.depth + test.tokens).tolist()
    if test.depth not in prefixes:
        prefixes[test.depth] = KVCache(backend.config)
        prefill(backend, ids[: test.depth], prefixes[test.depth])
    cache = prefixes[test.depth]
    cache.truncate(test.depth)
    timed = ids[test.depth :]
    began = time.perf_counter()
    if test.prefill:
        prefill(backend, timed, cache)
    else:
        for token in timed:
            backend.forward([token], cache)
    return test.tokens / (time.perf_counter() - began)


def prefill(backend: "Backend", ids: list[int], cache: "KVCache") -> None:
    """In chunks, as the session does it."""
    for first in range(0, len(ids), backend.prefill_chunk):
        backend.forward(ids[first : first + backend.prefill_chunk], cache)


if __name__ == "__main__":
    sys.exit(main())
