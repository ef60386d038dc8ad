"""Documents of raw text, one by one, from files of any size.

.txt    documents between `<|endoftext|>`, as TinyStories and GPT-2 separate them; else one document
.jsonl  one on each line: a string, or an object with "text", "story" or "content"
.json   a list of the same, as TinyStories_all_data; the one kind that is read as a whole

Files are UTF-8, with or without a byte order mark, and end their lines as any system does.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from llamatui.errors import UsageError

SEPARATOR = "<|endoftext|>"
ENDS = (".txt", ".jsonl", ".json")
KEYS = ("text", "story", "content")
CHUNK = 1 << 22
"""Characters read at a time. A .txt document of more is cut into several, each after a white space."""
OURS = ("dataset.json", "tokenizer.json", "tokenizer_config.json")
"""No text: a dataset may be written into the folder that its text is in."""


def text_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those in folders whose names end as ENDS say, in order of name.

    Raises:
        UsageError: A path does not exist, or none holds text.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: expected a text file or a folder, found neither", "check the name")
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p.relative_to(path)))
        else:
            found.append(path)
    if not found:
        raise UsageError(
            f"expected text, found no file that ends with {', '.join(ENDS)}", "name a file, or another folder"
        )
    return found


def _is_text(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in ENDS and path.name not in OURS and not hidden


def read_documents(files: Iterable[Path]) -> Iterator[str]:
    """All documents, without white space around them, in order; empty ones are left out.

    Raises:
        UsageError: A file cannot be read, is no UTF-8, or is no JSON.
    """
    readers = {".jsonl": _json_lines, ".json": _json_list}
    for path in files:
        try:
            for document in readers.get(path.suffix.lower(), _separated)(path):
                if text := document.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}: expected UTF-8, found {_other_byte(path)}",
                "convert it: iconv -f ITS_ENCODING -t UTF-8",
            ) from error
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _other_byte(path: Path) -> str:
    """The first that is no UTF-8, and where: a decoder of chunks does not know."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                at = error.start
                return f"byte 0x{line[at]:02x} at offset {offset + at:,}, in line {number:,}"
            offset += len(line)
    return "other bytes"


def _separated(path: Path) -> Iterator[str]:
    rest = ""
    with path.open(encoding="utf-8-sig") as file:
        while chunk := file.read(CHUNK):
            *whole, rest = (rest + chunk).split(SEPARATOR)
            yield from whole
            if len(rest) > CHUNK:
                # Where there is no white space, the start of a separator may be at the end.
                cut = max(map(rest.rfind, " \n")) + 1 or len(rest) - len(SEPARATOR)
                yield rest[:cut]
                rest = rest[cut:]
    yield rest


def _json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _text(_parsed(line, where), where)


def _json_list(path: Path) -> Iterator[str]:
    content = _parsed(path.read_text("utf-8-sig"), str(path))
    for number, entry in enumerate(content if isinstance(content, list) else [content], 1):
        yield _text(entry, f"{path}, entry {number}")


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: expected JSON: {error}", "mend it, or leave the file out") from error


def _text(entry: object, where: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in KEYS if isinstance(entry.get(key), str)), None)
    if not isinstance(entry, str):
        raise UsageError(
            f"{where}: expected a string, or an object with {' or '.join(KEYS)}, found neither",
            "mend it, or leave the file out",
        )
    return entry.encode("utf-8", "replace").decode()  # JSON may escape half a surrogate pair
