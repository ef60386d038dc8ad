"""Writes llama2.c checkpoints, versions 0, 1 and 2, tensor by tensor; `run` and `runq` read them."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

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
from llamatui.backends.q8_0 import FloatArray, fit_group_size, max_error, quantize
from llamatui.backends.rope import rope_table
from llamatui.errors import CheckpointError

TensorSource = Callable[[str, int], FloatArray]
"""(name, layer) -> one layer of a tensor, as `tensor_layout` names and shapes it; layer 0 where unlayered."""

Progress = Callable[[int, int], None]
"""(bytes written, bytes in all), called after each tensor."""


@dataclass
class WriteReport:
    config: ModelConfig
    """As written: with the group size that fits."""
    file_size: int
    errors: dict[str, float] = field(default_factory=dict)
    """Version 2: largest |w - dequantized w| by tensor ("wq.3": layer 3)."""

    @property
    def max_error(self) -> float:
        return max(self.errors.values(), default=0.0)


def write_checkpoint(
    path: str | os.PathLike[str],
    config: ModelConfig,
    version: int,
    source: TensorSource,
    *,
    group_size: int = 64,
    progress: Progress | None = None,
) -> WriteReport:
    """Writes a checkpoint atomically: an interrupted write leaves nothing at `path`.

    Args:
        config: Its own group_size is ignored.
        version: 0 and 1 for fp32, 2 for Q8_0. Version 0 cannot hold RoPE settings, chat format or token ids.
        source: Called once for each layer of each tensor, in file order.
        group_size: Wanted for version 2; halved until it divides dim and hidden_dim.

    Raises:
        CheckpointError: The config makes no sense, version 0 cannot hold its RoPE settings, or a tensor has
            another shape than it says.
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
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            for spec in layout:
                for layer in range(max(spec.n_layers, 1)):
                    _write_tensor(file, spec, layer, config, source, report)
                    if progress:
                        progress(file.tell(), report.file_size)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes files private
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return report


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def _write_tensor(
    file: BinaryIO,
    spec: TensorSpec,
    layer: int,
    config: ModelConfig,
    source: TensorSource,
    report: WriteReport,
) -> None:
    if spec.name == "rope_freqs":
        cos, sin = rope_table(config, config.max_seq_len)
        w = np.stack([cos, sin])  # (2, max_seq_len, head_dim / 2)
    else:
        w = np.ascontiguousarray(source(spec.name, layer), "<f4")  # spec.shape
    if w.shape != spec.shape:
        raise CheckpointError(f"{spec.name}: expected shape {spec.shape}, found {w.shape}")
    if spec.group_size:
        tensor = quantize(w, spec.group_size)
        report.errors[f"{spec.name}.{layer}" if spec.n_layers else spec.name] = max_error(w, tensor)
        file.write(tensor.q.tobytes())
        file.write(tensor.scale.astype("<f4").tobytes())
    else:
        file.write(w.tobytes())
