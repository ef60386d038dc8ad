"""llama2.c checkpoint files (`.bin`): header, layout of the tensors, and a memory-mapped reader.

    version  header                                 weights
    0        7 int32, no magic                      fp32; vocab_size < 0 means an own classifier
    1        "ak42", 1, 7 int32, flags, to 256 B    fp32
    2        "ak42", 2, 7 int32, flags, to 256 B    Q8_0 matrices, fp32 norms

The 7 numbers are dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len, little-endian.
Source: llama2.c `export.py` (legacy_export, version1_export, version2_export) and `run.c`, `runq.c`.

What those headers have no field for (RoPE, norm_eps, chat format, token ids) lives in the zero padding of
versions 1 and 2, behind the tag `LTUI` at byte 64, where `run` and `runq` do not look. See `EXTENSION`.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamatui.backends.q8_0 import FloatArray, Q8Tensor
from llamatui.errors import CheckpointError

MAGIC = 0x616B3432  # "ak42"
HEADER_SIZE = 256
LEGACY_HEADER = struct.Struct("<7i")
HEADER = struct.Struct("<Ii7iB")  # magic, version, the 7 numbers, shared_classifier
GROUP_SIZE = struct.Struct("<i")  # follows HEADER in version 2

# Tag, revision, rope_theta, rope scaling (factor, low, high, original context; factor 0: none), norm_eps,
# chat format (ASCII, zero-padded), bos_id (-1: unknown), number of eos ids, eos ids.
EXTENSION = struct.Struct("<4sI4fIf16siI8i")
EXTENSION_OFFSET = 64
EXTENSION_TAG = b"LTUI"
EXTENSION_REVISION = 1
MAX_EOS_IDS = 8

LLAMA3_VOCAB_SIZE = 128256
MAX_DIMENSION = 1 << 24  # a sane bound for every number in a header: 16 M positions, rows or columns

KNOWN_MAGICS = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"%PDF": "a PDF document",
    b"SQLi": "an SQLite database",
    b"\n\x0e\n\x05<unk>": "a SentencePiece tokenizer",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1/3.2 scaling of the RoPE frequencies (`rope_type: llama3` in Hugging Face configs)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture, in the field's terms. Dimensions are numbers of elements."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    shared_classifier: bool = True
    group_size: int = 0
    """Weights per Q8_0 scale; 0 for fp32."""
    chat_format: str = ""
    """Name of the chat format the model was tuned on; "" if the file does not say."""
    bos_id: int = -1
    """Id that starts a sequence; -1 if the file does not say."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a document or turn; empty if the file does not say."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.head_dim * self.n_kv_heads

    @property
    def n_params(self) -> int:
        """Weights, embedding and classifier included, a shared one once."""
        return sum(spec.size for spec in tensor_layout(self, 1))

    @property
    def kv_bytes_per_token(self) -> int:
        """fp32 keys and values of one position, all layers."""
        return 2 * 4 * self.n_layers * self.kv_dim


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where a tensor lies. Layered tensors repeat every `stride` bytes.

    A Q8_0 layer is its int8 weights followed by its float32 scales.
    """

    name: str
    shape: tuple[int, ...]
    """Of one layer."""
    n_layers: int
    """0 for a tensor that is not repeated."""
    group_size: int
    """0 for fp32."""
    offset: int

    @property
    def size(self) -> int:
        """Elements, all layers."""
        return math.prod(self.shape) * max(self.n_layers, 1)

    @property
    def stride(self) -> int:
        """Bytes from one layer to the next."""
        n = math.prod(self.shape)
        return n + n // self.group_size * 4 if self.group_size else n * 4

    @property
    def end(self) -> int:
        return self.offset + self.stride * max(self.n_layers, 1)


def tensor_layout(config: ModelConfig, version: int) -> list[TensorSpec]:
    """All tensors in file order. This list is the file format: reader, writer and checks follow it."""
    c, n = config, config.n_layers
    embedding = ("tok_embeddings", (c.vocab_size, c.dim), 0)
    attention_norm = ("attention_norm", (c.dim,), n)
    attention: list[tuple[str, tuple[int, ...], int]] = [
        ("wq", (c.dim, c.dim), n),
        ("wk", (c.kv_dim, c.dim), n),
        ("wv", (c.kv_dim, c.dim), n),
        ("wo", (c.dim, c.dim), n),
    ]
    ffn_norm = ("ffn_norm", (c.dim,), n)
    ffn: list[tuple[str, tuple[int, ...], int]] = [
        ("w1", (c.hidden_dim, c.dim), n),
        ("w2", (c.dim, c.hidden_dim), n),
        ("w3", (c.hidden_dim, c.dim), n),
    ]
    norm = ("norm", (c.dim,), 0)
    classifier = [] if c.shared_classifier else [("wcls", (c.vocab_size, c.dim), 0)]
    if version == 0:
        # Cosines and sines that run.c no longer reads.
        rope = ("rope_freqs", (2, c.max_seq_len, c.head_dim // 2), 0)
        order = [embedding, attention_norm, *attention, ffn_norm, *ffn, norm, rope, *classifier]
    else:
        order = [attention_norm, ffn_norm, norm, embedding, *attention, *ffn, *classifier]
    specs: list[TensorSpec] = []
    offset = LEGACY_HEADER.size if version == 0 else HEADER_SIZE
    for name, shape, layers in order:
        group_size = c.group_size if version == 2 and not name.endswith("norm") else 0
        specs.append(TensorSpec(name, shape, layers, group_size, offset))
        offset = specs[-1].end
    return specs


def check_config(config: ModelConfig, where: str) -> None:
    """Raises CheckpointError unless the numbers make sense together."""

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise CheckpointError(f"{where}: {problem}", "the file is damaged or not a llama2.c checkpoint")

    c = config
    for field in fields(c)[:7]:
        value = getattr(c, field.name)
        require(0 < value <= MAX_DIMENSION, f"{field.name} must be in 1..{MAX_DIMENSION}, found {value}")
    require(c.vocab_size > 1, f"vocab_size must be at least 2, found {c.vocab_size}")
    require(c.dim % c.n_heads == 0, f"dim {c.dim} is not divisible by n_heads {c.n_heads}")
    require(c.head_dim % 2 == 0, f"head_dim {c.head_dim} (dim / n_heads) must be even for RoPE")
    require(
        c.n_heads % c.n_kv_heads == 0, f"n_heads {c.n_heads} is not divisible by n_kv_heads {c.n_kv_heads}"
    )
    require(
        math.isfinite(c.rope_theta) and c.rope_theta > 0, f"rope_theta must be positive, found {c.rope_theta}"
    )
    require(0 <= c.norm_eps < 1, f"norm_eps must be in 0..1, found {c.norm_eps}")
    if c.rope_scaling:
        s = c.rope_scaling
        require(
            all(math.isfinite(x) and x > 0 for x in (s.factor, s.low_freq_factor, s.high_freq_factor))
            and s.high_freq_factor > s.low_freq_factor
            and 0 < s.original_max_seq_len <= MAX_DIMENSION,
            f"RoPE scaling does not make sense: {s}",
        )
    for token in (*c.eos_ids, max(c.bos_id, 0)):
        require(0 <= token < c.vocab_size, f"token id {token} is outside the vocabulary of {c.vocab_size}")
    if c.group_size:
        require(
            0 < c.group_size <= MAX_DIMENSION,
            f"group size must be in 1..{MAX_DIMENSION}, found {c.group_size}",
        )
        for name, dim in (("dim", c.dim), ("hidden_dim", c.hidden_dim)):
            require(
                dim % c.group_size == 0,
                f"group size {c.group_size} does not divide {name} {dim}, so groups straddle rows",
            )


def pack_extension(config: ModelConfig) -> bytes:
    """The part of the header that only llamatui reads; goes to EXTENSION_OFFSET of versions 1 and 2."""
    s = config.rope_scaling or RopeScaling(0.0, 0.0, 0.0, 0)
    eos = [*config.eos_ids, *[0] * MAX_EOS_IDS][:MAX_EOS_IDS]
    return EXTENSION.pack(
        EXTENSION_TAG, EXTENSION_REVISION, config.rope_theta,
        s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_seq_len,
        config.norm_eps, config.chat_format.encode("ascii"), config.bos_id, len(config.eos_ids), *eos,
    )  # fmt: skip


def _unpack_extension(header: bytes, config: ModelConfig, where: str) -> ModelConfig:
    (
        tag, revision, theta, factor, low, high, original,
        eps, chat_format, bos_id, n_eos, *eos,
    ) = EXTENSION.unpack_from(header, EXTENSION_OFFSET)  # fmt: skip
    if tag != EXTENSION_TAG:
        return config
    if n_eos > MAX_EOS_IDS:
        raise CheckpointError(f"{where}: expected at most {MAX_EOS_IDS} eos ids, found {n_eos}")
    if revision != EXTENSION_REVISION:
        raise CheckpointError(
            f"{where}: header extension revision {EXTENSION_REVISION} expected, found {revision}",
            "update llamatui, or export the model again",
        )
    name = chat_format.rstrip(b"\0")
    if not all(0x21 <= byte < 0x7F for byte in name):
        raise CheckpointError(f"{where}: the chat format in the header is not a name: {name!r}")
    return replace(
        config,
        rope_theta=theta,
        rope_scaling=RopeScaling(factor, low, high, original) if factor else None,
        # Stored as float32: give back the decimal that was meant.
        norm_eps=float(f"{eps:.6g}"),
        chat_format=name.decode("ascii"),
        bos_id=bos_id,
        eos_ids=tuple(eos[:n_eos]),
    )


def parse_header(header: bytes, where: str) -> tuple[int, ModelConfig]:
    """(version, config) from the first 256 bytes (28 are enough for version 0).

    Raises:
        CheckpointError: Not a checkpoint, an unknown version, or numbers that make no sense.
    """
    hint = "give a llama2.c or llama3.2.c .bin checkpoint"
    for magic, kind in KNOWN_MAGICS.items():
        if header.startswith(magic):
            raise CheckpointError(f"{where}: expected a .bin checkpoint, found {kind}", hint)
    if len(header) < LEGACY_HEADER.size:
        raise CheckpointError(
            f"{where}: expected a header of 28 or 256 bytes, found {len(header)} bytes", hint
        )
    if struct.unpack_from("<I", header)[0] != MAGIC:
        dim, hidden, layers, heads, kv_heads, vocab, seq_len = LEGACY_HEADER.unpack_from(header)
        config = ModelConfig(
            dim, hidden, layers, heads, kv_heads, abs(vocab), seq_len, shared_classifier=vocab > 0
        )
        check_config(with_default_theta(config), where)
        return 0, with_default_theta(config)
    if len(header) < HEADER_SIZE:
        raise CheckpointError(
            f"{where}: expected a header of 256 bytes, found {len(header)}", "the file is truncated"
        )
    _, version, *numbers, shared = HEADER.unpack_from(header)
    if version not in (1, 2):
        raise CheckpointError(f"{where}: expected version 1 or 2 behind the magic, found {version}", hint)
    config = with_default_theta(replace(ModelConfig(*numbers), shared_classifier=shared != 0))
    if version == 2:
        (group_size,) = GROUP_SIZE.unpack_from(header, HEADER.size)
        if group_size <= 0:
            raise CheckpointError(f"{where}: group size must be positive, found {group_size}", hint)
        config = replace(config, group_size=group_size)
    config = _unpack_extension(header, config, where)
    check_config(config, where)
    return version, config


def with_default_theta(config: ModelConfig) -> ModelConfig:
    # llama3.2.c writes plain version-0 files and has 500000 in its source; the vocabulary tells them apart.
    return replace(config, rope_theta=500000.0) if config.vocab_size == LLAMA3_VOCAB_SIZE else config


class Checkpoint:
    """A model file, memory-mapped read-only: nothing is read until a backend touches it.

    Attributes:
        version: 0, 1 or 2.
        opened: Size and time of change, in ns, of the file that was opened: another may take its name.
        mapping: The whole file.
        tensors: By name, see `tensor_layout`. Layered ones have n_layers as first dimension. fp32 arrays, or
            Q8Tensor for the matrices of version 2. All are views of the mapping.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens and checks the file; constant time and memory, whatever its size.

        Raises:
            CheckpointError: Missing, not a checkpoint, or its size does not match its header.
        """
        self.path = Path(path)
        where = str(self.path)
        try:
            if self.path.is_dir():
                raise CheckpointError(
                    f"{where}: expected a model file, found a folder", "give the .bin file in it"
                )
            if not self.path.is_file() and self.path.exists():
                raise CheckpointError(f"{where}: expected a regular file, found a device or pipe")
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.opened = status.st_size, status.st_mtime_ns
                header = file.read(HEADER_SIZE)
                self.file_size = status.st_size
                if not header:
                    raise CheckpointError(f"{where}: expected a .bin checkpoint, found an empty file")
                self.version, self.config = parse_header(header, where)
                layout = tensor_layout(self.config, self.version)
                self._check_size(layout[-1].end)
                # Advice is kept to the default: readahead suits the first pass, and pages stay shared.
                self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(
                f"{where}: no such file", "check the path; `llamatui generate --help` has examples"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from error
        self.tensors = {
            spec.name: _map_tensor(self.mapping, spec) for spec in layout if spec.name != "rope_freqs"
        }
        self.tensors.setdefault("wcls", self.tensors["tok_embeddings"])

    def _check_size(self, expected: int) -> None:
        if self.file_size == expected:
            return
        problem = "truncated" if self.file_size < expected else "longer than its header says"
        raise CheckpointError(
            f"{self.path}: expected {expected:,} bytes for this header, found {self.file_size:,}",
            f"the file is {problem}, or not a llama2.c checkpoint; download or export it again",
        )

    def fp32(self, name: str) -> FloatArray:
        """A tensor that is stored as fp32."""
        tensor = self.tensors[name]
        assert not isinstance(tensor, Q8Tensor), name
        return tensor


def _map_tensor(mapping: mmap.mmap, spec: TensorSpec) -> FloatArray | Q8Tensor:
    def view(shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int) -> npt.NDArray[np.generic]:
        item = np.dtype(dtype).itemsize
        strides = tuple(math.prod(shape[i + 1 :]) * item for i in range(len(shape)))
        if spec.n_layers:
            shape, strides = (spec.n_layers, *shape), (spec.stride, *strides)
        return np.ndarray(shape, dtype, mapping, offset, strides)

    if not spec.group_size:
        return view(spec.shape, np.float32, spec.offset).view(np.float32)
    *rows, cols = spec.shape
    q = view(spec.shape, np.int8, spec.offset)  # ([n_layers,] rows, cols)
    scale_shape = (*rows, cols // spec.group_size)
    scale = view(scale_shape, "<f4", spec.offset + math.prod(spec.shape))  # ([n_layers,] rows, groups)
    return Q8Tensor(q.view(np.int8), scale.view(np.float32))
