"""`llamatui inspect`: what a model file is, and what it needs."""

import json as json_library
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llamatui.app.cli import loading, options
from llamatui.app.cli.options import Json
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint import Checkpoint


def inspect(model: options.Model = None, tokenizer: options.Tokenizer = None, json: Json = False) -> None:
    """Show a model's header, tensors, format, tokenizer and memory needed."""
    settings = loading.settings_from(model, tokenizer=tokenizer)
    from llamatui.app.file_hash import file_sha256
    from llamatui.app.model import open_checkpoint

    checkpoint = open_checkpoint(settings.model)
    content = {
        "path": str(checkpoint.path),
        "format": f"v{checkpoint.version}",
        "precision": "q8_0" if checkpoint.version == 2 else "fp32",
        "file_size": checkpoint.file_size,
        "sha256": file_sha256(checkpoint.path),
        "params": checkpoint.config.n_params,
        "config": {**asdict(checkpoint.config), "head_dim": checkpoint.config.head_dim},
        "tensors": tensors(checkpoint),
        "tokenizer": tokenizer_info(checkpoint, settings.tokenizer),
        "memory": memory(checkpoint),
    }
    if json:
        typer.echo(json_library.dumps(content, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    else:
        show(content)


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


def memory(checkpoint: "Checkpoint") -> dict[str, int]:
    """Bytes: weights as each precision holds them, and the KV cache of a full context."""
    from llamatui.backends.checkpoint import tensor_layout

    c = checkpoint.config
    return {
        "weights_mapped": tensor_layout(c, checkpoint.version)[-1].end,
        "weights_dequantized": c.n_params * 4 if checkpoint.version == 2 else 0,
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
    if needs["weights_dequantized"]:
        weights += f"; the numpy backend adds {size(needs['weights_dequantized'])}"
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
