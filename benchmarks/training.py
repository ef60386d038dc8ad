"""`llamatui train run` against llama2.c's train.py: interleaved rounds of the same steps, medians, ratios.

    git clone https://github.com/karpathy/llama2.c
    python benchmarks/training.py --llama2c llama2.c            # 15M shape; --compile for both compiled

Both train the same architecture on the same ids in batches of the same size, without dropout, in processes of
their own. The time
of a step is the median of those after the first few; evaluations and start-up are left out. llama2.c needs
`tqdm` and `requests` to be importable.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llamatui.backends.threads import physical_cores
from llamatui.train.dataset import Dataset, Shard, SplitInfo, write_info

SHAPE = {"dim": 288, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "max_seq_len": 256}
VOCAB_SIZE = 32000
N_TOKENS = 200_000  # of each split: random ids take as long as text
SKIPPED = 3  # steps at the start, which load kernels and compile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llama2c", type=Path, help="a checkout of llama2.c; without it only ours is timed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="both with torch.compile")
    parser.add_argument("--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    tokens = args.batch_size * SHAPE["max_seq_len"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder)
        ours, theirs = [], []
        for number in range(args.rounds):
            ours.append(tokens / time_ours(folder / f"run{number}", data, args))
            print(f"llamatui   {ours[-1]:9.0f} tok/s", flush=True)
            if args.llama2c:
                theirs.append(tokens / time_llama2c(args.llama2c, folder / f"llama2c{number}", data, args))
                print(f"llama2.c   {theirs[-1]:9.0f} tok/s", flush=True)
    print(f"llamatui   {statistics.median(ours):9.0f} tok/s, median of {args.rounds}")
    if theirs:
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"llama2.c   {statistics.median(theirs):9.0f} tok/s; ratio {ratio:.2f}, median of each round's")
    return 0


def write_data(folder: Path) -> Path:
    """A dataset of ours; its shards are llama2.c's too."""
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "valid"):
        rng.integers(3, VOCAB_SIZE, N_TOKENS).astype("<u2").tofile(data / f"{split}-0000.bin")
        splits[split] = SplitInfo((Shard(f"{split}-0000.bin", N_TOKENS),), 1, 2 * N_TOKENS)
    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(128))]
    pieces += [b"w%d" % i for i in range(VOCAB_SIZE - len(pieces))]
    records = [struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces]  # score, length, text
    (data / "tokenizer.bin").write_bytes(struct.pack("<i", max(map(len, pieces))) + b"".join(records))
    write_info(Dataset(data, "tokenizer.bin", VOCAB_SIZE, "uint16", splits))
    return data


def time_ours(out: Path, data: Path, args: argparse.Namespace) -> float:
    """Seconds of a step."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings(args).items()]
    flags += ["--grad-accumulation=1", "--sample-tokens=0", f"--threads={args.threads}", "--dtype=float32"]
    flags += ["--compile" if args.compile else "--no-compile", "--plain"]
    run([sys.executable, "-m", "llamatui", "train", "run", data, out, *flags], Path.cwd(), args.threads)
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    times = [event["time"] for event in map(json.loads, lines) if event["event"] == "step"]
    return median_step(np.diff(times).tolist())


def time_llama2c(checkout: Path, work: Path, data: Path, args: argparse.Namespace) -> float:
    """Seconds of a step."""
    shutil.copytree(checkout, work, ignore=shutil.ignore_patterns(".git"))
    shards = work / "data" / f"tok{VOCAB_SIZE}"
    shards.mkdir(parents=True)
    shutil.copy(data / "valid-0000.bin", shards / "data00.bin")  # the first is its validation split
    shutil.copy(data / "train-0000.bin", shards / "data01.bin")
    flags = [f"--{name}={value}" for name, value in settings(args).items()]
    flags += ["--gradient_accumulation_steps=1", "--vocab_source=custom", f"--vocab_size={VOCAB_SIZE}"]
    flags += ["--device=cpu", "--dtype=float32", f"--compile={args.compile}"]
    output = run([sys.executable, "train.py", *flags], work, args.threads)
    return median_step([float(ms) / 1000 for ms in re.findall(r"\| ([\d.]+)ms \|", output)])


def settings(args: argparse.Namespace) -> dict[str, int | float]:
    """What both call the same."""
    steps = args.steps + SKIPPED
    return {
        **SHAPE,
        "dropout": 0.0,
        "batch_size": args.batch_size,
        "max_iters": steps,
        "eval_interval": 10**6,
        "eval_iters": 1,
    }


def median_step(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[SKIPPED:])


def run(command: Sequence[str | Path], folder: Path, threads: int) -> str:
    """What a command prints on stdout; its stderr is shown where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{command[1]}: {result.stderr[-2000:]}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
