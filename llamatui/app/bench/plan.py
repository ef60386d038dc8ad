"""What a measurement of speed consists of: cases that fit the context, and backends that run the file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llamatui.app.bench.speed import BackendRunner, Case, Runner, random_cache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.registry import BUILTIN, backend_class, create_backend, default_backend
from llamatui.errors import LlamatuiError, UsageError

PREFILL, DECODE = (128, 512), (128,)
"""Tokens, where the context has room for them."""

Say = Callable[[str], None]


def plan_cases(
    context: int, prefill: Sequence[int], decode: Sequence[int], depths: Sequence[int], note: Say
) -> list[Case]:
    """Cases of every length at every depth.

    An empty sequence takes the default, cut to what fits; a length of 0 leaves that kind out.

    Args:
        context: Most positions that the model can hold.
        note: Told what was cut.

    Raises:
        UsageError: A length or a depth that was asked for does not fit, or there is nothing to do.
    """
    depths = depths or [0]
    deepest = max(depths)
    room = context - deepest
    where = f"the context of {context}" + (f" behind -d {deepest}" if deepest else "")
    if room < 1:
        raise UsageError(
            f"-d {deepest} leaves no room in the context of {context}", f"-d {context - 1} or less"
        )
    for flag, given in (("-p", prefill), ("-n", decode)):
        if given and max(given) > room:
            raise UsageError(f"{flag} {max(given)} does not fit {where}", f"{flag} {room} or less")
    lengths: list[list[int]] = []
    for flag, given, default in (("-p", prefill, PREFILL), ("-n", decode, DECODE)):
        fitting = given or list(dict.fromkeys(min(length, room) for length in default))
        if not given and max(default) > room:
            note(f"{flag} {','.join(map(str, fitting))}: {max(default)} does not fit {where}")
        lengths.append([length for length in fitting if length])
    cases: list[Case] = []
    for depth in depths:
        cases += [Case("prefill", length, depth) for length in lengths[0]]
        cases += [Case("decode", length, depth) for length in lengths[1]]
    if not cases:
        raise UsageError("-p 0 and -n 0 leave nothing to measure", "leave one of them out")
    return cases


def load_runners(
    checkpoint: Checkpoint,
    backends: str,
    threads: Sequence[int],
    positions: int,
    peer: Path | None,
    note: Say,
    progress: Say,
) -> list[Runner]:
    """A runner for each backend with each number of threads, then the peer's.

    Args:
        backends: Names, as "a,b"; "all" is each of ours that runs the file; "" the file's default.
        positions: Most positions of a case.
        peer: File for llama.cpp; None leaves it out.
        note: Told what was left out, and why.

    Raises:
        UsageError: No backend is called so.
        BackendError: A backend that was named cannot run the file.
    """
    names = list(BUILTIN)
    if backends != "all":
        names = [name.strip() for name in (backends or default_backend(checkpoint)).split(",")]
        for name in names:
            backend_class(name)  # a wrong name is told before anything is prepared
    peers: list[Runner] = []
    if peer is not None:
        from llamatui.app.bench.peer import LlamaCppRunner

        progress("preparing llama.cpp")
        peers = [LlamaCppRunner(peer, count, positions) for count in threads]
    cache = random_cache(checkpoint.config, positions)
    runners: dict[tuple[str, int], Runner] = {}
    for name in dict.fromkeys(names):
        counts = threads
        if name == "numpy" and len(threads) > 1:
            counts = [max(threads)]
            note(f"numpy: only with {counts[0]} threads, which NumPy's BLAS was told when it was loaded")
        for count in counts:
            progress(f"preparing {name}, {count} threads")
            try:
                backend = create_backend(name, checkpoint, count, progress)
            except LlamatuiError as error:
                if backends != "all":
                    raise
                note(f"{name}: left out: {error.message}")
                break
            if backend.threads != count:
                note(f"{name}: {backend.threads} threads instead of {count}")
            runners.setdefault((name, backend.threads), BackendRunner(backend, cache))
    return [*runners.values(), *peers]
