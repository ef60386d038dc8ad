"""`llamatui inspect`: what a model file is, and what it needs."""

import json as json_library
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamatui.app import store
from llamatui.app.cli import loading, options
from llamatui.app.cli.options import Json
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint import Checkpoint, ModelConfig


def inspect(model: options.Model = None, tokenizer: options.Tokenizer = None, json: Json = False) -> None:
    """Show a model's header, tensors, format, tokenizer and memory needed."""
    settings = loading.settings_from(model, tokenizer=tokenizer)
    from llamatui.app.gguf_cache import is_gguf

    path = store.resolve(settings.model)
    content = inspect_gguf(path) if is_gguf(path) else inspect_bin(path, settings.tokenizer)
    if json:
        typer.echo(json_library.dumps(content, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    else:
        show(content)


def inspect_bin(path: Path, tokenizer: str) -> dict[str, Any]:
    from llamatui.backends.checkpoint import Checkpoint

    checkpoint = Checkpoint(path)
    return {
        **summary(path, checkpoint.config),
        "format": f"v{checkpoint.version}",
        "precision": "q8_0" if checkpoint.version == 2 else "fp32",
        "tensors": tensors(checkpoint),
        "tokenizer": tokenizer_info(checkpoint, tokenizer),
        "memory": memory(checkpoint.config, checkpoint.version),
    }


def inspect_gguf(path: Path) -> dict[str, Any]:
    """What the file says itself: nothing is converted."""
    from llamatui.export.gguf_file import open_gguf, type_name
    from llamatui.export.gguf_header import read_gguf_header
    from llamatui.export.to_bin import default_version

    source = open_gguf(path)
    stored = read_gguf_header(path).tensors.values()
    types = Counter(type_name(tensor) for tensor in stored if len(tensor.shape) == 2)
    return {
        **summary(path, source.config),
        "format": "gguf",
        "precision": types.most_common(1)[0][0].lower(),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": type_name(tensor).lower(),
                "bytes": tensor.n_bytes,
            }
            for tensor in stored
        ],
        "tokenizer": {"path": str(path), "format": "gguf"}
        if source.tokenizer
        else {"path": None, "problem": "the file has none; name one with -z"},
        "memory": memory(source.config, default_version(source)),
    }


def summary(path: Path, config: "ModelConfig") -> dict[str, Any]:
    from llamatui.app.file_hash import file_sha256

    return {
        "path": str(path),
        "format": "",
        "precision": "",
        "file_size": path.stat().st_size,
        "sha256": file_sha256(path),
        "params": config.n_params,
        "config": {**asdict(config), "head_dim": config.head_dim},
    }


def tensors(checkpoint: "Checkpoint") -> list[dict[str, Any]]:
    from llamatui.backends.checkpoint import tensor_layout

    return [
        {
            "name": spec.name,
            "shape": [*([spec.n_layers] if spec.n_layers else []), *spec.shape],
            "type": f"q8_0/{spec.group_size}" if spec.group_size else "fp32",
            "bytes": spec.end - spec.offset,
        }
        for spec in tensor_layout(checkpoint.config, checkpoint.version)
    ]


def tokenizer_info(checkpoint: "Checkpoint", named: str) -> dict[str, Any]:
    """Which tokenizer would be used, or why none can be."""
    from llamatui.app.model import tokenizer_of
    from llamatui.tokenizers.loading import load_tokenizer

    vocab_size = checkpoint.config.vocab_size
    path = Path(named) if named else tokenizer_of(checkpoint)
    if path is None:
        return {"path": None, "problem": f"none of {vocab_size} tokens was found; name one with -z"}
    try:
        return {"path": str(path), "format": load_tokenizer(path, vocab_size).format}
    except LlamatuiError as error:
        return {"path": str(path), "problem": error.message}


def memory(c: "ModelConfig", version: int) -> dict[str, int]:
    """Bytes: weights as a .bin of that version holds them, and the KV cache of a full context."""
    from llamatui.backends.checkpoint import tensor_layout
    from llamatui.export.to_bin import DEFAULT_GROUP_SIZE

    c = replace(c, group_size=c.group_size or DEFAULT_GROUP_SIZE) if version == 2 else c
    return {
        "weights_mapped": tensor_layout(c, version)[-1].end,
        "weights_dequantized": c.n_params * 4 if version == 2 else 0,
        "kv_cache_per_token": c.kv_bytes_per_token,
        "kv_cache_full": c.kv_bytes_per_token * c.max_seq_len,
    }


def show(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.filesize import decimal as size
    from rich.table import Table

    # Lines are not cut: a path or a hash is there to be copied.
    console = Console(highlight=False, soft_wrap=True)
    config, needs, found = content["config"], content["memory"], content["tokenizer"]
    weights = f"{size(needs['weights_mapped'])}, mapped from the file"
    if content["format"] == "gguf":
        weights = f"{size(needs['weights_mapped'])} once it is converted"
    if needs["weights_dequantized"]:
        weights += f"; numpy and numba add {size(needs['weights_dequantized'])}"
    rows = {
        "file": f"{content['path']} ({size(content['file_size'])})",
        "sha256": content["sha256"],
        "format": f"{content['format']}, {content['precision']}",
        "parameters": f"{content['params']:,}",
        **{name: value for name, value in config.items() if value not in (None, "", (), 0, -1)},
        "tokenizer": " · ".join(filter(None, (found["path"], found.get("format"), found.get("problem")))),
        "weights": weights,
        "KV cache": f"{size(needs['kv_cache_full'])} when full, {size(needs['kv_cache_per_token'])} a token",
    }
    for name, value in rows.items():
        console.print(f"[dim]{name:18}[/dim]", end="")
        console.print(value, markup=False)
    console.print()
    table = Table("tensor", "shape", "type", "size", box=None, header_style="dim", pad_edge=False)
    for tensor in content["tensors"]:
        shape = " × ".join(map(str, tensor["shape"]))
        table.add_row(tensor["name"], shape, tensor["type"], size(tensor["bytes"]))
    console.print(table)
