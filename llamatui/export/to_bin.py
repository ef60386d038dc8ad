"""Writes a source as a llama2.c `.bin`, with its tokenizer beside it."""

import math
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import Progress, WriteReport, write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.source import Source, TokenizerFiles
from llamatui.tokenizers.file_names import TOKENIZER_ENDS

DEFAULT_GROUP_SIZE = 64  # llama2.c's
LARGEST_FP32 = 1 << 30  # bytes


def default_version(source: Source) -> int:
    """The one that loses nothing and is not too large.

    2 (Q8_0) where all matrices are Q8_0 already, or would fill more than 1 GiB as fp32; else 1.
    """
    layout = tensor_layout(source.config, 1)
    is_q8_0 = bool(source.config.group_size) and all(
        isinstance(source.tensor(spec.name, layer)[:1], Q8Tensor)
        for spec in layout
        for layer in range(max(spec.n_layers, 1))
        if len(spec.shape) == 2
    )
    return 2 if is_q8_0 or layout[-1].end > LARGEST_FP32 else 1


def export_bin(
    source: Source,
    target: Path,
    *,
    version: int | None = None,
    group_size: int | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """Writes `target` and `<stem>.tokenizer.*` beside it, the model last: an interrupted export leaves none.

    Args:
        version: 0, 1 or 2; None means `default_version`.
        group_size: Weights per scale in version 2, a divisor of dim and hidden_dim; None means what the
            source has, else 64, halved until it is one.

    Raises:
        UsageError: The target is no file, is not named `.bin`, or is the source; `group_size` does not fit.
        CheckpointError: The source is damaged, or version 0 cannot hold its settings.
        LlamatuiError: The file cannot be written, or there is no room for it.
    """
    if not target.parent.is_dir():
        if target.parent.exists():
            raise LlamatuiError(f"{target.parent}: expected a folder, found a file", "choose another")
        raise LlamatuiError(f"{target.parent}: expected a folder, found none", "create it, or choose another")
    if target.exists():
        if not target.is_file():  # a device or a pipe would be replaced too
            kind = "a folder" if target.is_dir() else "a device or pipe"
            raise UsageError(f"{target}: expected a file to write, found {kind}", "choose another name")
        if source.path.exists() and target.samefile(source.path):
            raise UsageError(f"{target}: expected another file than the source", "choose another name")
    if target.suffix != ".bin":
        raise UsageError(f"{target}: expected a name that ends in .bin", f"{target.with_suffix('.bin')}")
    version = default_version(source) if version is None else version
    config = source.config
    if group_size is not None:
        _check_group_size(group_size, version, config)
    if version == 0:
        # What the old header has no field for but nothing needs: the vocabulary says it again.
        config = replace(config, chat_format="", bos_id=-1, eos_ids=())
    return write_checkpoint(
        target,
        config,
        version,
        source.tensor,
        group_size=group_size or source.config.group_size or DEFAULT_GROUP_SIZE,
        progress=progress,
        on_complete=lambda: _write_tokenizer(target, source.tokenizer),
    )


def _check_group_size(group_size: int, version: int, config: ModelConfig) -> None:
    if version != 2:
        raise UsageError(
            f"group size {group_size}: expected version 2, found {version}, which has no groups",
            "--version 2",
        )
    common = math.gcd(config.dim, config.hidden_dim)
    if group_size < 1 or common % group_size:
        sizes = [str(size) for size in range(4, common + 1) if common % size == 0]
        raise UsageError(
            f"expected a group size that divides dim {config.dim} and hidden_dim {config.hidden_dim}, "
            f"found {group_size}",
            f"--group-size {' | '.join(sizes or [str(common)])}",
        )


def _write_tokenizer(target: Path, files: TokenizerFiles) -> None:
    """All or, where the disk is full, none. A tokenizer that was here before belongs to another model."""
    parts = {end: target.with_name(f".{target.stem}{end}.{token_hex(4)}.part") for end in files}
    try:
        for end, content in files.items():
            parts[end].write_bytes(content)
        for end, part in parts.items():
            part.replace(target.with_name(target.stem + end))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    for end in TOKENIZER_ENDS if files else ():
        if end not in files:
            target.with_name(target.stem + end).unlink(missing_ok=True)
