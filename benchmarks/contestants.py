"""Who takes part in benchmarks/speed.py: our backends, llama2.c's `run` and `runq`, llama.cpp's llama-bench.

Each is measured in a process of its own, one at a time. Ours stays between rounds, asleep; a peer is started
anew each time and leaves loading out of its time, as it does by itself.
"""

import json
import os
import re
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from llamatui.errors import LlamatuiError

SETTLE_S = 0.3  # OpenMP threads spin for up to 0.2 s after a call before they sleep


@dataclass(frozen=True)
class Test:
    """What is timed.

    Decode with argmax is the whole loop as `run -t 0` has it, from an empty context. Without, it is forward
    passes of random ids alone, which is what llama-bench times; prefill likewise.
    """

    tokens: int
    depth: int = 0
    """Tokens in the KV cache before the clock starts."""
    prefill: bool = False
    argmax: bool = False

    def __str__(self) -> str:
        if self.prefill:
            return f"prefill, {self.tokens} tokens"
        how = ", argmax" if self.argmax else ""
        where = f" at depth {self.depth}" if self.depth else ""
        return f"decode, {self.tokens} tokens{how}{where}"


class Contestant(Protocol):
    name: str
    family: str
    """Builds of one program share a family: the best of them counts."""

    def measure(self, test: Test) -> float:
        """Tokens per second."""


class Ours:
    """One backend on one file, in a worker process (worker.py): NumPy's BLAS takes its thread count once."""

    def __init__(self, backend: str, model: Path, threads: int) -> None:
        self.name = self.family = f"llamatui {backend}"
        worker = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(
            [sys.executable, worker, backend, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, test: Test) -> float:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(asdict(test)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended, and has said why
        line = self._process.stdout.readline()
        if not line:
            raise LlamatuiError(f"{self.name} could not be measured", "its own message stands above")
        time.sleep(SETTLE_S)
        return float(line)

    def close(self) -> None:
        self._process.communicate()  # closes its stdin, which ends it


class Run:
    """llama2.c's (or llama3.2.c's) `run` or `runq`."""

    def __init__(
        self, name: str, family: str, program: Path, model: Path, vocabulary: Path, threads: int
    ) -> None:
        self.name, self.family = name, family
        self._command: list[str | Path] = [program.resolve(), model, "-z", vocabulary, "-t", "0", "-i", "a"]
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def measure(self, test: Test) -> float:
        result = run_peer(self.name, [*self._command, "-n", str(test.tokens)], self._environment)
        # One byte a token; the first one's is taken for a leading space.
        made = len(result.stdout.removesuffix(b"\n")) + 1
        if made < test.tokens:
            raise LlamatuiError(
                f"{self.name}: expected {test.tokens} tokens, found about {made}: the model ended its text",
                "ask for fewer tokens with --decode",
            )
        found = re.search(rb"tok/s: ([\d.]+)", result.stderr)
        if not found:
            raise LlamatuiError(f"{self.name}: expected 'achieved tok/s' on its stderr, found none")
        return float(found[1])


def write_vocabulary(path: Path, vocab_size: int) -> None:
    """A `tokenizer.bin` for `run` whose tokens are all the letter a, so that its output counts them.

    The prompt "a" needs that and a space. Without a prompt, random weights would say BOS again and end.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<i", 1))  # length of the longest token
        for _ in range(vocab_size - 1):
            file.write(struct.pack("<fi", 0.0, 1) + b"a")  # score, length, text
        file.write(struct.pack("<fi", 0.0, 1) + b" ")


class LlamaBench:
    """llama.cpp, by its own benchmark and with its defaults, on the CPU."""

    def __init__(self, name: str, program: Path, gguf: Path, threads: int) -> None:
        self.name = self.family = name
        flags = f"-t {threads} -ngl 0 -r 1 -o json".split()
        self._command: list[str | Path] = [program.resolve(), "-m", gguf, *flags]

    def measure(self, test: Test) -> float:
        prompt, generated = (test.tokens, 0) if test.prefill else (0, test.tokens)
        arguments = ["-p", str(prompt), "-n", str(generated), "-d", str(test.depth)]
        result = run_peer(self.name, [*self._command, *arguments], dict(os.environ))
        return float(json.loads(result.stdout)[0]["avg_ts"])


def run_peer(
    name: str, command: list[str | Path], environment: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    try:
        result = subprocess.run(command, capture_output=True, env=environment)
    except OSError as error:
        raise LlamatuiError(f"{command[0]} cannot be started: {error.strerror}") from error
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        raise LlamatuiError(
            f"{name} ended with {result.returncode}: {said[-1]}", f"try it: {' '.join(map(str, command))}"
        )
    return result
