"""Our backends against llama2.c and llama.cpp: interleaved rounds in one run, medians, ratios.

    python benchmarks/speed.py --shape 110M --run ./run --runq ./runq --llama-bench ./llama-bench
    python benchmarks/speed.py --shape 15M 110M 1B --models ~/models --run run_gcc run_clang --md table.md
    python benchmarks/speed.py --real m.bin m.q8_0.bin --gguf m.F32.gguf m.Q8_0.gguf --llama-bench llama-bench

Peers are programs that you have built: `run` and `runq` of llama2.c or llama3.2.c (these only for 128,256
tokens), and llama.cpp's `llama-bench`. Every round measures each contestant once, one process at a time; the
ratio is the median of each round's, so that a machine whose speed drifts favours no one. Of several builds
of `run` the one with the better median counts.

Decode against `run` includes choosing the token (temperature 0) on both sides. llama-bench chooses none, so
against it only forward passes are timed. It keeps its defaults: KV cache in fp16, where ours is fp32, and
batches of 512.
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

from contestants import Contestant, LlamaBench, Ours, Run, Test, write_vocabulary
from random_models import SHAPES, model_files, write_models, write_version_0

from llamatui.backends.checkpoint import Checkpoint, ModelConfig
from llamatui.backends.registry import backend_names
from llamatui.backends.threads import physical_cores
from llamatui.errors import LlamatuiError

Q8_0_BACKENDS = {"q8_0"}  # the others compute in fp32


@dataclass(frozen=True)
class Model:
    """One model in one precision, as all contestants read it."""

    label: str
    path: Path
    run_path: Path
    """What `run` or `runq` reads."""
    gguf: Path | None
    gguf_label: str
    config: ModelConfig

    @property
    def is_q8_0(self) -> bool:
        return self.config.group_size > 0

    def __str__(self) -> str:
        return f"{self.label} {'Q8_0' if self.is_q8_0 else 'fp32'}"


@dataclass
class Result:
    """Tokens per second of every contestant in every round of one test."""

    model: str
    threads: int
    test: Test
    speeds: list[tuple[Contestant, list[float]]]

    def best(self) -> list[tuple[Contestant, list[float]]]:
        """The best build of each family, in order."""
        best: dict[str, tuple[Contestant, list[float]]] = {}
        for contestant, speeds in self.speeds:
            rival = best.get(contestant.family)
            if rival is None or statistics.median(speeds) > statistics.median(rival[1]):
                best[contestant.family] = contestant, speeds
        return list(best.values())

    def pairs(self) -> Iterator[tuple[Contestant, list[float], Contestant, list[float]]]:
        """Each backend of ours with each peer."""
        best = self.best()
        for ours, our_speeds in best:
            if isinstance(ours, Ours):
                for peer, peer_speeds in best:
                    if not isinstance(peer, Ours):
                        yield ours, our_speeds, peer, peer_speeds

    def text(self) -> str:
        lines = [f"{self.model}, {threads_text(self.threads)}: {self.test}"]
        for contestant, speeds in self.speeds:
            spread = f"({min(speeds):.1f} to {max(speeds):.1f})"
            ratios = [
                f"{ours.name.split()[-1]} / this {ratio(our_speeds, speeds):.2f}"
                for ours, our_speeds in self.speeds
                if isinstance(ours, Ours) and not isinstance(contestant, Ours)
            ]
            columns = f"  {contestant.name:26}{statistics.median(speeds):9.1f} tok/s  {spread:22}"
            lines.append((columns + ", ".join(ratios)).rstrip())
        return "\n".join(lines)


@dataclass
class Report:
    rounds: int
    results: list[Result] = field(default_factory=list)

    @property
    def machine(self) -> str:
        return f"{cpu_name()}, {physical_cores()} cores; {date.today()}; median of {self.rounds} rounds"

    def markdown(self) -> str:
        rows = [
            f"{self.machine}\n",
            "| model | threads | test | llamatui | tok/s | peer | tok/s | ratio |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for result in self.results:
            for ours, our_speeds, peer, peer_speeds in result.pairs():
                build = "" if peer.name == peer.family else f" ({peer.name})"
                cells = [
                    result.model, str(result.threads), str(result.test),
                    ours.name.split()[-1], shown(our_speeds), peer.family + build, shown(peer_speeds),
                    f"{ratio(our_speeds, peer_speeds):.2f}",
                ]  # fmt: skip
                rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows) + "\n"

    def as_json(self) -> str:
        results = [
            {
                "model": result.model,
                "threads": result.threads,
                "test": str(result.test),
                "tok_s": {contestant.name: speeds for contestant, speeds in result.speeds},
                "ratios": [
                    {"llamatui": ours.name, "peer": peer.name, "ratio": ratio(our_speeds, peer_speeds)}
                    for ours, our_speeds, peer, peer_speeds in result.pairs()
                ],
            }
            for result in self.results
        ]
        return (
            json.dumps({"machine": self.machine, "rounds": self.rounds, "results": results}, indent=1) + "\n"
        )


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def shown(speeds: Sequence[float]) -> str:
    median = statistics.median(speeds)
    return f"{median:.1f}" if median < 100 else f"{median:.0f}"


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    args = arguments()
    try:
        with contextlib.ExitStack() as stack:
            folder = args.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            benchmark(args, folder)
    except LlamatuiError as error:
        print(f"error: {error.message}", *filter(None, [error.hint]), sep="\n  ", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    several = partial(parser.add_argument, nargs="+", action="extend")
    several("--shape", choices=SHAPES, help="random weights of these shapes")
    several("--real", type=Path, help="models of your own, fp32 or Q8_0")
    several("--gguf", type=Path, help="for llama-bench: the models of --real, in that order")
    parser.add_argument("--models", type=Path, help="folder for what is written, kept for the next run")
    several("--run", type=Path, help="builds of llama2.c's run")
    several("--runq", type=Path, help="builds of llama2.c's runq")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench")
    several("--backend", choices=backend_names(), help="ours to measure, default: all")
    several("--threads", type=int, help="default: 1 and one per core")
    several("--decode", type=int, help="tokens to decode, default: 64; 0 for none")
    several("--prefill", type=int, help="tokens to prefill, default: 128 512; 0 for none")
    several("--depth", type=int, help="decode after so many tokens, default: 2000; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--md", type=Path, help="file for the table, as Markdown")
    parser.add_argument("--json", type=Path, help="file for every number")
    args = parser.parse_args()
    if not args.shape and not args.real:
        parser.error("give --shape or --real")
    if args.rounds < 1:
        parser.error(f"expected at least 1 round, found {args.rounds}")
    if args.gguf and len(args.gguf) != len(args.real or ()):
        parser.error(f"expected a --gguf for each --real, found {len(args.gguf)} for {len(args.real or ())}")
    for program in [*(args.run or ()), *(args.runq or ()), *filter(None, [args.llama_bench])]:
        if not program.is_file():  # told now, not after gigabytes were written
            parser.error(f"{program}: expected a program, found none: build it first")
    args.threads = args.threads or sorted({1, physical_cores()})
    for name, default in (("decode", [64]), ("prefill", [128, 512]), ("depth", [2000])):
        given = getattr(args, name)
        setattr(args, name, default if given is None else [n for n in given if n])
    return args


def benchmark(args: argparse.Namespace, folder: Path) -> None:
    report = Report(args.rounds)
    for model in models(args, folder):
        planned = list(tests(args, model))
        for threads in args.threads:
            with contextlib.ExitStack() as stack:
                ours = our_backends(args, model, threads, stack)
                peers = {True: runs(args, folder, model, threads), False: llama_bench(args, model, threads)}
                for test in planned:
                    everyone = [*ours, *peers[test.argmax]]
                    if not everyone:
                        continue
                    result = Result(str(model), threads, test, measure(everyone, test, args.rounds))
                    report.results.append(result)
                    print(result.text(), end="\n\n", flush=True)
                    # Each time: a long run that is interrupted keeps what it found.
                    if args.md:
                        args.md.write_text(report.markdown(), encoding="utf-8")
                    if args.json:
                        args.json.write_text(report.as_json(), encoding="utf-8")


def models(args: argparse.Namespace, folder: Path) -> Iterator[Model]:
    """Every model in every precision, its files written where they are missing."""
    for shape in args.shape or ():
        write_models(folder, shape, gguf=bool(args.llama_bench))
        for files, name in zip(model_files(folder, shape).values(), ("F32", "Q8_0"), strict=True):
            config = Checkpoint(files.model).config
            yield Model(shape, files.model, files.model, files.gguf, f"llama.cpp {name}", config)
    paths = args.real or ()
    for path, gguf in zip(paths, args.gguf or [None] * len(paths), strict=True):
        checkpoint = Checkpoint(path)
        run_path = path
        if args.run and checkpoint.version == 1:  # run reads version 0 only
            run_path = folder / f"{path.stem}.v0.bin"
            if not run_path.exists():
                write_version_0(run_path, path)
        gguf_label = f"llama.cpp {gguf.name}" if gguf else ""
        yield Model(path.stem, path, run_path, gguf, gguf_label, checkpoint.config)


def our_backends(
    args: argparse.Namespace, model: Model, threads: int, stack: contextlib.ExitStack
) -> list[Contestant]:
    """Those that compute in the model's precision; `stack` ends their processes."""
    found: list[Contestant] = []
    for name in args.backend or backend_names():
        if (name in Q8_0_BACKENDS) == model.is_q8_0:
            backend = Ours(name, model.path, threads)
            stack.callback(backend.close)
            found.append(backend)
    return found


def runs(args: argparse.Namespace, folder: Path, model: Model, threads: int) -> list[Contestant]:
    family = "llama2.c runq" if model.is_q8_0 else "llama2.c run"
    programs: list[Path] = (args.runq if model.is_q8_0 else args.run) or []
    vocabulary = folder / f"letters-{model.config.vocab_size}.tokenizer.bin"
    if programs:
        write_vocabulary(vocabulary, model.config.vocab_size)
    names = [program.name for program in programs]
    found: list[Contestant] = []
    for program in programs:
        name = program.name if names.count(program.name) == 1 else str(program)
        found.append(Run(name, family, program, model.run_path, vocabulary, threads))
    return found


def llama_bench(args: argparse.Namespace, model: Model, threads: int) -> list[Contestant]:
    if not args.llama_bench or not model.gguf:
        return []
    return [LlamaBench(model.gguf_label, args.llama_bench, model.gguf, threads)]


def tests(args: argparse.Namespace, model: Model) -> Iterator[Test]:
    """Those that fit the model's context; decode at depth is cut to fit."""
    context = model.config.max_seq_len
    with_run = args.runq if model.is_q8_0 else args.run
    wanted = [Test(n, argmax=True) for n in args.decode if with_run]
    wanted += [Test(n) for n in args.decode]
    wanted += [Test(n, prefill=True) for n in args.prefill]
    for depth in args.depth:
        wanted += [Test(min(n, context - depth) if depth < context else n, depth) for n in args.decode]
    for test in wanted:
        if test.depth + test.tokens <= context:
            yield test
        else:
            print(f"skipped: {test}; the context is {context}", file=sys.stderr)


def measure(everyone: Sequence[Contestant], test: Test, rounds: int) -> list[tuple[Contestant, list[float]]]:
    """Every contestant once in every round, each other round in reverse order."""
    results: list[tuple[Contestant, list[float]]] = [(contestant, []) for contestant in everyone]
    for contestant in everyone:
        if isinstance(contestant, Ours):  # to compile and to touch memory; peers warm up by themselves
            contestant.measure(test)
    for round_number in range(rounds):
        for contestant, speeds in results if round_number % 2 == 0 else reversed(results):
            progress(f"{test}: round {round_number + 1} of {rounds}, {contestant.name}")
            speeds.append(contestant.measure(test))
    progress("")
    return results


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
