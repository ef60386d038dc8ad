"""Our backends against llama2.c and llama.cpp: interleaved rounds in one run, medians, ratios.

    python benchmarks/speed.py --shape 110M
    python benchmarks/speed.py m.bin --run ./run --tokenizer t.bin --llama-bench ./llama-bench --gguf m.gguf

Peers are programs that you have built; `--run` is llama2.c's or llama3.2.c's. Decode is `-n` tokens from an
empty context with sampling, prefill is a prompt of `-p` tokens.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SHAPES = {  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len
    "15M": (288, 768, 6, 6, 6, 32000, 256),
    "110M": (768, 2048, 12, 12, 12, 32000, 1024),
    "1B": (2048, 8192, 16, 32, 8, 128256, 2048),
}
Measure = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="fp32 checkpoint; or use --shape")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of a known shape, instead of a model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-n", type=int, default=64, help="tokens to decode")
    parser.add_argument("-p", type=int, default=128, help="tokens to prefill")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", type=Path, help="llama2.c's run (needs --tokenizer)")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench (needs --gguf)")
    parser.add_argument("--gguf", type=Path)
    args = parser.parse_args()
    if not args.model and not args.shape:
        parser.error("give a model or --shape")

    from llamatui.backends.threads import limit_blas_threads

    limit_blas_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or random_model(Path(folder) / f"{args.shape}.bin", args.shape)
        decode, prefill = ours(model, args)
        if args.run:
            decode["llama2.c run"] = lambda: run_c(args, model)
        if args.llama_bench:
            decode["llama.cpp"] = lambda: llama_bench(args, ["-p", "0", "-n", str(args.n)])
            prefill["llama.cpp"] = lambda: llama_bench(args, ["-p", str(args.p), "-n", "0"])
        report(f"decode of {args.n} tokens", decode, args.rounds)
        report(f"prefill of {args.p} tokens", prefill, args.rounds)


def random_model(path: Path, shape: str) -> Path:
    import numpy as np

    from llamatui.backends.checkpoint import ModelConfig, tensor_layout
    from llamatui.backends.checkpoint_writer import write_checkpoint

    config = ModelConfig(*SHAPES[shape])
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 0)}
    rng = np.random.default_rng(0)
    print(f"writing random weights of the {shape} shape", file=sys.stderr)
    write_checkpoint(
        path, config, 0, lambda name, layer: rng.standard_normal(shapes[name], np.float32) * np.float32(0.02)
    )
    return path


def ours(model: Path, args: argparse.Namespace) -> tuple[dict[str, Measure], dict[str, Measure]]:
    from llamatui.app.engine import Limits, Session
    from llamatui.app.sampler import Sampler
    from llamatui.app.sampling import Sampling
    from llamatui.backends.checkpoint import Checkpoint
    from llamatui.backends.registry import BUILTIN, create_backend

    decode: dict[str, Measure] = {}
    prefill: dict[str, Measure] = {}
    for name in BUILTIN:
        backend = create_backend(name, Checkpoint(model), args.threads)

        def decode_tps(backend: object = backend) -> float:
            generation = Session(backend).start([1], Sampler(Sampling(1.0, 1.0, seed=1)), Limits(args.n))
            list(generation)
            return generation.timings.decode_tps

        def prefill_tps(backend: object = backend) -> float:
            prompt = [i % 1000 + 300 for i in range(args.p)]
            generation = Session(backend).start(prompt, Sampler(Sampling(0.0)), Limits(1))
            list(generation)
            return generation.timings.prefill_tps

        decode[f"llamatui {name}"], prefill[f"llamatui {name}"] = decode_tps, prefill_tps
    return decode, prefill


def run_c(args: argparse.Namespace, model: Path) -> float:
    command = [args.run, model, "-z", args.tokenizer, "-t", "1", "-p", "1", "-s", "1", "-n", str(args.n)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    found = re.search(rb"tok/s: ([\d.]+)", result.stderr)
    assert found, result.stderr
    return float(found[1])


def llama_bench(args: argparse.Namespace, test: list[str]) -> float:
    command = [args.llama_bench, "-m", args.gguf, "-t", str(args.threads), *test, "-r", "1", "-o", "json"]
    result = subprocess.run(command, capture_output=True, check=True)
    return float(json.loads(result.stdout)[0]["avg_ts"])


def report(title: str, measures: dict[str, Measure], rounds: int) -> None:
    """One row per contestant; every round runs each of them once, after a warm-up round."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for round_number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if round_number:
                results[name].append(value)
    first = next(iter(results))
    base = results[first]
    print(f"\n{title}, tok/s, median of {rounds} (lowest, highest)")
    for name, values in results.items():
        # The ratio of each round, so that a machine whose speed drifts does not favour anyone.
        ratio = statistics.median(a / b for a, b in zip(base, values, strict=True))
        spread = f"({min(values):.1f}, {max(values):.1f})"
        print(f"  {name:20} {statistics.median(values):9.1f} {spread:20} {first} / this: {ratio:.2f}")


if __name__ == "__main__":
    main()
