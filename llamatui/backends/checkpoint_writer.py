"""Writes llama2.c checkpoints, versions 0, 1 and 2, tensor by tensor; `run` and `runq` read them."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Protocol

import numpy as np

from llamatui.backends.checkpoint import (
    EXTENSION_OFFSET,
    GROUP_SIZE,
    HEADER,
    HEADER_SIZE,
    LEGACY_HEADER,
    MAGIC,
    MAX_EOS_IDS,
    ModelConfig,
    TensorSpec,
    check_config,
    pack_extension,
    tensor_layout,
    with_default_theta,
)
from llamatui.backends.q8_0 import FloatArray, Q8Tensor, fit_group_size, group_errors, quantize
from llamatui.backends.rope import rope_table
from llamatui.errors import CheckpointError, LlamatuiError


class Rows(Protocol):
    """One layer of a tensor, read a block of rows at a time: an array, or what reads them from a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> FloatArray | Q8Tensor:
        """Q8_0 rows are written as they are where their group size is the file's."""


TensorSource = Callable[[str, int], Rows]
"""(name, layer) -> one layer of a tensor, as `tensor_layout` names and shapes it; layer 0 where unlayered."""

Progress = Callable[[int, int], None]
"""(bytes written, bytes in all), called after each block."""

BLOCK = 1 << 24  # elements held as fp32 at a time: 64 MB


@dataclass
class WriteReport:
    config: ModelConfig
    """As written: with the group size that fits."""
    file_size: int
    errors: dict[str, float] = field(default_factory=dict)
    """Version 2: largest |w - dequantized w| by tensor ("wq.3": layer 3). 0 where Q8_0 rows were kept."""
    n_groups: int = 0
    sum_of_errors: float = 0.0
    """Of the largest error of each group."""

    @property
    def max_error(self) -> float:
        return max(self.errors.values(), default=0.0)

    @property
    def mean_error(self) -> float:
        """Mean over all groups of the largest error in each."""
        return self.sum_of_errors / max(self.n_groups, 1)

    @property
    def worst_tensor(self) -> str:
        """Name of the tensor with the largest error; "" where nothing was quantized."""
        return max(self.errors, key=self.errors.__getitem__, default="")


def write_checkpoint(
    path: str | os.PathLike[str],
    config: ModelConfig,
    version: int,
    source: TensorSource,
    *,
    group_size: int = 64,
    progress: Progress | None = None,
    on_complete: Callable[[], None] = lambda: None,
) -> WriteReport:
    """Writes a checkpoint atomically: an interrupted write leaves nothing at `path`.

    Args:
        config: Its own group_size is ignored.
        version: 0 and 1 for fp32, 2 for Q8_0. Version 0 cannot hold RoPE settings, chat format or token ids.
        source: Called once for each layer of each tensor, in file order. Memory is that of one block of rows
            (and of what `source` itself holds), whatever the size of the tensor.
        group_size: Wanted for version 2; halved until it divides dim and hidden_dim.
        on_complete: Called once all is on the disk, before it appears at `path`.

    Raises:
        CheckpointError: The config makes no sense, version 0 cannot hold its RoPE settings, or a tensor has
            another shape than it says, or values that cannot be quantized.
        LlamatuiError: The disk has no room for the file, or the folder cannot be written to.
    """
    target = Path(path)
    if group_size < 1:
        raise CheckpointError(f"group size must be positive, found {group_size}")
    fitted = fit_group_size(group_size, config.dim, config.hidden_dim) if version == 2 else 0
    config = replace(config, group_size=fitted)
    check_config(config, str(target))
    header = _header(config, version)
    layout = tensor_layout(config, version)
    report = WriteReport(config, layout[-1].end)
    try:
        check_room(target.parent, report.file_size, ", or write version 2, a quarter of the size")
        # Made by `open` and not by `tempfile`, whose files nobody else may read.
        temporary = target.with_name(f".{target.name}.{token_hex(4)}.part")
        try:
            _write_file(temporary, header, layout, config, source, report, progress)
            on_complete()
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise LlamatuiError(
            f"{target}: cannot be written: {error.strerror or error}", "choose another place for the file"
        ) from error
    return report


def check_room(folder: Path, needed: int, alternative: str = "") -> None:
    """Checks that a folder's disk has `needed` bytes free; `alternative` ends the hint.

    Raises:
        LlamatuiError: It has fewer.
        OSError: There is no such folder.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LlamatuiError(
            f"{folder}: {_size(needed)} are needed, {_size(free)} are free",
            f"make room or choose another disk{alternative}",
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def _write_file(
    path: Path,
    header: bytes,
    layout: list[TensorSpec],
    config: ModelConfig,
    source: TensorSource,
    report: WriteReport,
    progress: Progress | None,
) -> None:
    def step() -> None:
        if progress:
            progress(file.tell(), report.file_size)

    with path.open("wb") as file:
        file.write(header)
        for spec in layout:
            for layer in range(max(spec.n_layers, 1)):
                rows = _rope_freqs(config) if spec.name == "rope_freqs" else source(spec.name, layer)
                name = f"{spec.name}.{layer}" if spec.n_layers else spec.name
                _write_tensor(file, spec, name, rows, report, step)
        file.flush()
        os.fsync(file.fileno())


def _header(config: ModelConfig, version: int) -> bytes:
    c = config
    numbers = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.max_seq_len)
    if version == 0:
        assumed = with_default_theta(ModelConfig(*numbers))
        if (c.rope_theta, c.rope_scaling, c.norm_eps) != (assumed.rope_theta, None, assumed.norm_eps):
            raise CheckpointError(
                f"version 0 cannot hold rope_theta {c.rope_theta}, {c.rope_scaling}, norm_eps {c.norm_eps}",
                "write version 1 or 2",
            )
        vocab_size = c.vocab_size if c.shared_classifier else -c.vocab_size
        return LEGACY_HEADER.pack(*numbers[:5], vocab_size, c.max_seq_len)
    if version not in (1, 2):
        raise CheckpointError(f"expected checkpoint version 0, 1 or 2, found {version}")
    if len(c.eos_ids) > MAX_EOS_IDS or len(c.chat_format) > 16 or not c.chat_format.isascii():
        raise CheckpointError(
            f"the header has room for {MAX_EOS_IDS} eos ids and 16 ASCII characters of chat format, "
            f"found {len(c.eos_ids)} and {c.chat_format!r}"
        )
    header = bytearray(HEADER_SIZE)
    HEADER.pack_into(header, 0, MAGIC, version, *numbers, c.shared_classifier)
    if version == 2:
        GROUP_SIZE.pack_into(header, HEADER.size, c.group_size)
    extension = pack_extension(c)
    header[EXTENSION_OFFSET : EXTENSION_OFFSET + len(extension)] = extension
    return bytes(header)


def _rope_freqs(config: ModelConfig) -> FloatArray:
    cos, sin = rope_table(config, config.max_seq_len)
    return np.stack([cos, sin])  # (2, max_seq_len, head_dim / 2)


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cover a tensor's rows, each of at most BLOCK elements or of one row."""
    step = max(1, BLOCK // prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _write_tensor(
    file: BinaryIO, spec: TensorSpec, name: str, rows: Rows, report: WriteReport, step: Callable[[], None]
) -> None:
    if tuple(rows.shape) != spec.shape:
        raise CheckpointError(f"{name}: expected shape {spec.shape}, found {tuple(rows.shape)}")
    scales = []
    for block in row_blocks(spec.shape):
        w = rows[block]  # (block, cols)
        if spec.group_size:
            tensor = _quantized(w, name, spec.group_size, report)
            file.write(np.ascontiguousarray(tensor.q).data)
            scales.append(tensor.scale.astype("<f4"))  # (block, groups)
        else:
            w = w.dequantize() if isinstance(w, Q8Tensor) else w
            file.write(np.ascontiguousarray(w, "<f4").data)
        if block.stop < spec.shape[0]:
            step()
    for scale in scales:
        file.write(scale.data)
    step()


def _quantized(w: FloatArray | Q8Tensor, name: str, group_size: int, report: WriteReport) -> Q8Tensor:
    if isinstance(w, Q8Tensor) and w.group_size == group_size:
        report.errors.setdefault(name, 0.0)
        report.n_groups += w.scale.size
        return w
    w = w.dequantize() if isinstance(w, Q8Tensor) else w.astype(np.float32, copy=False)
    if not np.isfinite(w).all():
        raise CheckpointError(
            f"{name}: expected numbers, found infinite ones or NaN, which Q8_0 cannot hold",
            "the model is damaged: get it again",
        )
    tensor = quantize(w, group_size)
    errors = group_errors(w, tensor)  # (block, groups)
    report.errors[name] = max(report.errors.get(name, 0.0), float(errors.max()))
    report.n_groups += errors.size
    report.sum_of_errors += float(errors.sum(dtype=np.float64))
    return tensor
