"""The direction of imports, and what may not be imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llamatui"
ROOMS = {"app", "backends", "tokenizers", "export", "train"}
# What each room may import of the others. `export` knows files, not how they are run.
ALLOWED = {
    "app": {"backends", "tokenizers", "export", "train"},
    "train": {
        "export",
        "tokenizers",
        "backends.checkpoint",
        "backends.checkpoint_writer",
        "backends.q8_0",
        "backends.rope",
        "backends.threads",
    },
    "export": {"backends.checkpoint", "backends.checkpoint_writer", "backends.q8_0", "tokenizers"},
    "backends": set(),
    "tokenizers": set(),
}


def imports(path: Path) -> set[str]:
    """Dotted names below `llamatui` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {name.removeprefix("llamatui.") for name in found if name.startswith("llamatui.")}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_in_one_direction(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            if name.split(".")[0] in ROOMS - {room}:
                allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[room])
                assert allowed, f"{path.relative_to(PACKAGE)} imports llamatui.{name}"


def test_the_rooms_are_all_there() -> None:
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} == ROOMS


@pytest.mark.parametrize("module", ["llamatui", "llamatui.app.cli.main", "llamatui.backends.threads"])
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    heavy = ["numpy", "numba", "textual", "torch", "rich", "tiktoken", "sentencepiece", "pcre2"]
    heavy += ["gguf", "huggingface_hub", "filelock"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_stay_small() -> None:
    long = {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 500}
    assert not long
