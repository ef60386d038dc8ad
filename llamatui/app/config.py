"""Settings: flag > environment `LLAMATUI_*` > config.toml > default, the same for every command.

This module is imported for `--help`, so it stays light.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llamatui.errors import UsageError

Source = Literal["flag", "environment", "config", "default"]


@dataclass(frozen=True, slots=True)
class Settings:
    model: str = ""
    """Model to run where none is named: a file or a name; empty is the one that comes with llamatui."""
    tokenizer: str = ""
    """Tokenizer file; empty looks next to the model."""
    backend: str = ""
    """Backend by name; empty takes the fastest that is installed."""
    threads: int = 0
    """Threads; 0 is one per physical core."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 0.9
    """Samples from the smallest set that holds this probability; 0 or 1 is off."""
    top_k: int = 0
    """Keeps the k most likely tokens; 0 is off."""
    min_p: float = 0.0
    """Drops tokens below this fraction of the likeliest one's probability; 0 is off."""
    repeat_penalty: float = 1.0
    """Makes recent tokens less likely; 1 is off."""
    seed: int = 0
    """Random seed; 0 picks one."""
    overflow: str = ""
    """When the context is full: stop, shift or error; empty is shift in chat, else stop."""
    context: int = 0
    """Most tokens to hold; 0 is what the model was made for."""
    chat_format: str = ""
    """Chat format: llama2, llama3, chatml or zephyr; empty asks the model."""
    system: str = ""
    """System prompt for chat."""
    kv_cache_mb: int = 2000
    """Megabytes of disk for what models have read, so that texts opened again go on at once; 0 is off."""
    history: str = "on"
    """Whether conversations and stories are kept: on or off."""
    theme: str = ""
    """Theme of the terminal app: dark, light, contrast, or one of Textual's; empty is the dark one."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of the terminal app, by what they do; only in config.toml, as a table: F1 there lists them."""


def config_path() -> Path:
    """`LLAMATUI_CONFIG`, or config.toml in the user's configuration folder."""
    if named := os.environ.get("LLAMATUI_CONFIG"):
        return Path(named)
    from platformdirs import user_config_path

    return user_config_path("llamatui", appauthor=False) / "config.toml"


def resolve(flags: dict[str, Any] | None = None) -> tuple[Settings, dict[str, Source]]:
    """All settings, and where each came from. A flag that is None was not given.

    Raises:
        UsageError: config.toml cannot be read, has an unknown key, or a value is wrong.
    """
    path = config_path()
    from_file = _read_toml(path)
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for setting in fields(Settings):
        name, variable = setting.name, f"LLAMATUI_{setting.name.upper()}"
        if name == "keys":
            table = from_file.get(name, {})
            values[name], sources[name] = _table(table, f"{name} in {path}"), "config" if table else "default"
            continue
        kind = type(setting.default)
        flag = (flags or {}).get(name)
        if flag is not None:
            values[name], sources[name] = flag, "flag"
        elif (text := os.environ.get(variable)) not in (None, ""):
            values[name], sources[name] = _convert(text, kind, variable), "environment"
        elif name in from_file:
            values[name], sources[name] = _convert(from_file[name], kind, f"{name} in {path}"), "config"
        else:
            values[name], sources[name] = setting.default, "default"
    if values["history"] not in ("on", "off"):
        raise UsageError(
            f"history ({sources['history']}): expected on or off, found {values['history']!r}",
            "off keeps nothing of what is written and said",
        )
    return Settings(**values), sources


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import tomllib

    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", "mend it, or move it away") from error
    known = [setting.name for setting in fields(Settings)]
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown setting {key!r}", f"known are: {', '.join(known)}")
    return content


def _convert(value: Any, kind: type, where: str) -> Any:
    accepted = (int, float, str) if kind is float else (int, str) if kind is int else (str,)
    try:
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ValueError
        return kind(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{where}: expected {kind.__name__}, found {value!r}") from None


def _table(value: Any, where: str) -> dict[str, str]:
    """A TOML table of strings. An id may stand without quotes: `story.retry` is then a table in a table."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a table, found {value!r}", '[keys] and lines: "a.b" = "ctrl+y"')
    found: dict[str, str] = {}
    for name, item in value.items():
        inner = (
            {f"{name}.{end}": keys for end, keys in item.items()} if isinstance(item, dict) else {name: item}
        )
        found |= {binding: _convert(keys, str, f"{binding} in {where}") for binding, keys in inner.items()}
    return found
