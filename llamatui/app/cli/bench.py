"""`llamatui bench`: tokens per second, bits per byte of a text, or two backends side by side."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamatui.app import store
from llamatui.app.cli import loading, options
from llamatui.app.cli.terminal import INTERRUPTED, Interrupted, counted, dumps, printable
from llamatui.app.config import Settings
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.bench.compare import Comparison
    from llamatui.app.bench.speed import Bench
    from llamatui.app.model import LoadedModel
    from llamatui.backends.base import Backend

REPETITIONS = 5
PROMPT = "Once upon a time"
COMPARED_TOKENS = 128
MOST_TOKENS = 1 << 24


def bench(
    model: options.Model = None,
    tokenizer: options.Tokenizer = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Backends, as a,b; `all` is each of ours that runs the file; default: what generate takes.",
            autocompletion=options.complete_backend,
        ),
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads, as 1,2; default: one per physical core.")
    ] = None,
    prefill: Annotated[
        str | None, typer.Option("-p", help="Lengths of prompts, 0 is none; default: 128,512.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option("-n", help="Tokens to decode, 0 is none; default: 128.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option("-d", help="Tokens that are in the KV cache before; default: 0.")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option("-r", min=1, max=1000, help="Rounds, after one that warms up; default: 5.")
    ] = None,
    bits_per_byte: Annotated[
        Path | None,
        typer.Option(help="How well the model predicts a text file, in bits per byte, instead of speed."),
    ] = None,
    stories: Annotated[
        int | None, typer.Option(min=1, help="With --bits-per-byte: stories to read; default: all.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Two backends, as a,b: where greedy texts part, and KL divergence.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-i", "--prompt", help="With --compare: text to go on from.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help="`llama-cpp`: llama.cpp too, by the package llama-cpp-python.")
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(help="GGUF file for the peer; default: MODEL, where it is one.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--md", help="Print a Markdown table.")] = False,
) -> None:
    """Measure how fast a model runs, how well it predicts a text, or how far two backends differ.

    Speed is the median of rounds in which every configuration runs once. Random tokens are fed and nothing is
    sampled, so that only the model is measured.

    Example: llamatui bench stories15M.bin --backend all --threads 1,2 -d 0,100
    """
    counts = numbers(threads, "--threads", 1, 1024)
    lengths = [
        numbers(text, flag, 0, MOST_TOKENS) for flag, text in (("-p", prefill), ("-n", decode), ("-d", depth))
    ]
    only_speed = {
        "-p": prefill, "-d": depth, "-r": repetitions, "--peer": peer, "--gguf": gguf, "--md": markdown,
    }  # fmt: skip
    if bits_per_byte is not None:
        mode = "--bits-per-byte"
        refuse(mode, {**only_speed, "-n": decode, "--compare": compare, "-i": prompt})
        one(mode, "--threads", threads)
        one(mode, "--backend", backend)
        settings = settings_for(model, tokenizer, counts)
        run_bits_per_byte(
            replace(settings, backend=backend or settings.backend), bits_per_byte, stories, json
        )
    elif compare is not None:
        mode = "--compare"
        refuse(mode, {**only_speed, "--backend": backend, "--stories": stories})
        one(mode, "--threads", threads)
        one(mode, "-n", decode)
        names = [name.strip() for name in compare.split(",")]
        if len(names) != 2:
            raise UsageError(f"--compare expected two backends, as a,b, found {compare!r}")
        settings = settings_for(model, tokenizer, counts)
        run_compare(settings, names, PROMPT if prompt is None else prompt, next(iter(lengths[1]), None), json)
    else:
        refuse("a measurement of speed", {"-i": prompt, "--stories": stories})
        if json and markdown:
            raise UsageError("give --json or --md, not both")
        settings = settings_for(model, tokenizer, counts, gguf)
        path = peer_file(settings, peer, gguf)
        speed = prepare(settings, backend or settings.backend, counts, lengths, path)
        run_speed(speed, repetitions or REPETITIONS, json, markdown)


def settings_for(
    model: str | None, tokenizer: Path | None, counts: list[int], gguf: Path | None = None
) -> Settings:
    """Where no model is named, the peer's file is it: the two are to run the same."""
    threads = max(counts, default=None)
    fallback = store.bundled if gguf is None else lambda: gguf
    return loading.settings_from(model, fallback, tokenizer=tokenizer, threads=threads)


def numbers(text: str | None, flag: str, least: int, most: int) -> list[int]:
    """The numbers of "1,2", each once; none for None.

    Raises:
        UsageError: It is something else, or a number is out of range.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) <= most for part in parts):
        raise UsageError(f"{flag} expected numbers like 1,2 in {least}..{most}, found {text!r}")
    return list(dict.fromkeys(map(int, parts)))


def refuse(mode: str, given: dict[str, object]) -> None:
    """Raises UsageError for an option that was given and that this mode would not look at."""
    for flag, value in given.items():
        if value not in (None, False):
            raise UsageError(f"{flag} does not go with {mode}")


def one(mode: str, flag: str, value: str | None) -> None:
    """Raises UsageError for a list."""
    if value is not None and "," in value:
        raise UsageError(f"{mode} takes one {flag}, found {value!r}")


def note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """One line on stderr that is written over and over, and gone in the end; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return

    def show(text: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be written over
        print(f"\r{printable(text)[:width]}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")


def print_json(content: dict[str, Any] | list[dict[str, Any]]) -> None:
    print(dumps(content, indent=2 if sys.stdout.isatty() else None))


def peer_file(settings: Settings, peer: str | None, gguf: Path | None) -> Path | None:
    """The file that the peer runs; None without a peer."""
    if peer is None:
        refuse("a measurement without --peer", {"--gguf": gguf})
        return None
    if peer != "llama-cpp":
        raise UsageError(f"--peer knows llama-cpp, found {peer!r}")
    from llamatui.app.gguf_cache import is_gguf

    path = gguf or store.resolve(settings.model)
    if not is_gguf(path):
        raise UsageError(
            f"{path}: --peer llama-cpp expected a GGUF file", "name the same model's: --gguf FILE"
        )
    return path


def prepare(
    settings: Settings, backends: str, counts: list[int], lengths: list[list[int]], peer: Path | None
) -> "Bench":
    """What is to be measured, all loaded."""
    from llamatui.app.bench.plan import load_runners, plan_cases
    from llamatui.app.bench.speed import Bench
    from llamatui.backends.threads import default_threads

    checkpoint = loading.checkpoint(settings)
    prefill, decode, depths = lengths
    cases = plan_cases(checkpoint.config.max_seq_len, prefill, decode, depths, note)
    positions = max(case.positions for case in cases)
    threads = counts or [settings.threads or default_threads()]
    with status() as progress:
        runners = load_runners(checkpoint, backends, threads, positions, peer, note, progress)
    return Bench.of(runners, cases)


def run_speed(speed: "Bench", rounds: int, json: bool, markdown: bool) -> None:
    """Measures and prints. After Ctrl+C a table still shows the rounds that are done."""
    from llamatui.app.bench import report
    from llamatui.app.cli.models import print_table

    interrupted = False
    with status() as progress:
        try:
            speed.run(rounds, progress)
        except Interrupted:
            interrupted = True
    rows = report.rows_of(speed)
    if json and not interrupted:
        print_json([asdict(row) for row in rows])
    elif rows and not json:
        if markdown:
            print(f"{report.markdown(rows)}\n")
        else:
            print_table(report.COLUMNS, map(report.cells, rows))
        print(printable(report.legend(speed)))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def run_bits_per_byte(settings: Settings, path: Path, stories: int | None, json: bool) -> None:
    """Scores and prints. After Ctrl+C the text output still shows the stories that are done."""
    from llamatui.app.bench.bits_per_byte import Score, score_file
    from llamatui.backends.registry import default_backend

    # By name, which waits until it is compiled: one text is not to be scored by two backends.
    backend = settings.backend or default_backend(loading.checkpoint(settings))
    model = loading.load(replace(settings, backend=backend))
    score = Score()
    interrupted = False
    with status() as progress:

        def show(score: Score) -> None:
            progress(
                f"{score.stories} stories, {score.tokens} tokens: {score.bits_per_byte:.4f} bits per byte"
            )

        try:
            score_file(model, path, stories, score, show)
        except Interrupted:
            interrupted = True
    if json and not interrupted:
        print_json(score.as_json())
    elif score.stories and not json:
        for name, value in score.as_json().items():
            print(f"{name:14}  {value:{'d' if isinstance(value, int) else '.4f'}}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def run_compare(settings: Settings, names: list[str], text: str, n: int | None, json: bool) -> None:
    """Compares and prints. `n` None takes the default, or what fits."""
    from llamatui.app.bench.compare import compare
    from llamatui.backends.registry import backend_class, create_backend

    if n == 0:
        raise UsageError("-n 0 leaves nothing to compare")
    backend_class(names[1])  # a wrong name is told before the first one is prepared
    model = loading.load(replace(settings, backend=names[0]))
    prompt = model.encode_prompt(text)
    context = model.checkpoint.config.max_seq_len
    room = context - len(prompt)
    if room < (n or 1):
        what = f"{len(prompt)} tokens of prompt" + (f" and -n {n}" if n else "")
        hint = f"-n {room} or less" if room > 0 else "a shorter prompt (-i)"
        raise UsageError(f"{what} do not fit the context of {context}", hint)
    with status() as progress:
        progress(f"preparing {names[1]}")
        other = create_backend(names[1], model.checkpoint, settings.threads or None)
        progress(f"comparing {names[0]} and {names[1]}")
        result = compare(model.backend, other, prompt, n or min(COMPARED_TOKENS, room))
    content = comparison_json(model, text, [model.backend, other], result)
    if json:
        print_json(content)
    else:
        show_comparison(content)


def comparison_json(
    model: "LoadedModel", prompt: str, backends: list["Backend"], result: "Comparison"
) -> dict[str, Any]:
    texts = [result.a, result.b]
    at = result.divergence
    divergence = None
    if at is not None:
        ids = [text.tokens[at] for text in texts]
        divergence = {
            "position": at,
            "tokens": [{"id": token, "text": token_text(model, token)} for token in ids],
        }
    return {
        "model": model.name,
        "prompt": prompt,
        "n_tokens": len(result.a.tokens),
        "backends": [
            {"backend": backend.name, "threads": backend.threads, "tps": text.tps}
            for backend, text in zip(backends, texts, strict=True)
        ],
        "first_divergence": divergence,
        "kl_mean": sum(result.kl) / len(result.kl),
        "kl_max": max(result.kl),
    }


def show_comparison(content: dict[str, Any]) -> None:

    for side in content["backends"]:
        speed = f"{side['tps']:.1f} tok/s with {counted(side['threads'], 'thread')}"
        print(f"{side['backend'] + ':':18}{speed}")
    told = f"none in {counted(content['n_tokens'], 'token')}"
    if divergence := content["first_divergence"]:
        sides = zip(divergence["tokens"], content["backends"], strict=True)
        choices = [f"{printable(repr(token['text']))} by {side['backend']}" for token, side in sides]
        told = f"token {divergence['position']} of {content['n_tokens']}: {', '.join(choices)}"
    print(f"first divergence: {told}")
    print(f"KL divergence:    mean {content['kl_mean']:.3g}, max {content['kl_max']:.3g} nats")


def token_text(model: "LoadedModel", token: int) -> str:
    names = {i: name for name, i in model.tokenizer.special_tokens.items()}
    return names.get(token) or model.tokenizer.decode_bytes(token).decode("utf-8", "replace")
