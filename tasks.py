"""The project's tasks, for any machine with Python: python tasks.py lint types test bench (or all of them).

lint    ruff: style, imports, formatting
types   mypy, strict
test    pytest, the whole suite
bench   benchmarks/speed.py at the 15M shape; run that file itself for peers and other shapes
check   lint, types and test
"""

import subprocess
import sys

PYTHON = sys.executable
TASKS = {
    "lint": [[PYTHON, "-m", "ruff", "check", "."], [PYTHON, "-m", "ruff", "format", "--check", "."]],
    "types": [[PYTHON, "-m", "mypy"]],
    "test": [[PYTHON, "-m", "pytest"]],
    "bench": [[PYTHON, "benchmarks/speed.py", "--shape", "15M"]],
}
TASKS["check"] = [*TASKS["lint"], *TASKS["types"], *TASKS["test"]]


def main() -> int:
    names = sys.argv[1:]
    if not names or any(name not in TASKS for name in names):
        print(__doc__)
        return 2
    for command in [command for name in names for command in TASKS[name]]:
        print("$", *command[1:], flush=True)
        if code := subprocess.call(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
