"""Every setting of a training run: the fields are the flags of `train run` and the keys of its TOML file.

    flag > config.toml (`--config`) > default

The defaults suit a few megabytes of text and a few cores: half an hour to a model that tells short stories.
"""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint import ModelConfig  # brings NumPy, and --help reads this module

T = TypeVar("T")
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

ARCHITECTURE = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "rope_theta", "tied")
"""What a model that exists already decides: a resumed run's, or that of `--init-from`."""


def _option(default: T, description: str) -> T:
    value: T = field(default=default, metadata={"help": description})
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    dim: int = _option(192, "Width of the model.")
    n_layers: int = _option(6, "Transformer layers.")
    n_heads: int = _option(6, "Query heads.")
    n_kv_heads: int = _option(0, "Key and value heads; 0: as many as query heads.")
    hidden_dim: int = _option(0, "Width of the feed-forward layers; 0: 8/3 of dim, in steps of 32.")
    max_seq_len: int = _option(256, "Context in tokens, and the length of a training window.")
    rope_theta: float = _option(10000.0, "Base of the rotary embedding's wavelengths.")
    tied: bool = _option(True, "Share the embedding with the classifier.")
    dropout: float = _option(0.1, "Share of activations dropped while training; 0 where text is plenty.")

    batch_size: int = _option(16, "Windows in one forward pass of one process.")
    grad_accumulation: int = _option(1, "Forward passes per step of the optimizer, all processes together.")
    max_iters: int = _option(2000, "Steps of the optimizer.")
    learning_rate: float = _option(2e-3, "At its highest, after warm-up.")
    min_lr: float = _option(0.0, "Learning rate at the end of the cosine.")
    warmup_iters: int = _option(
        100, "Steps over which the learning rate rises from 0; by default at most a tenth."
    )
    weight_decay: float = _option(0.1, "Of matrices, decoupled (AdamW).")
    beta1: float = _option(0.9, "Of AdamW.")
    beta2: float = _option(0.95, "Of AdamW.")
    grad_clip: float = _option(1.0, "Largest norm of the gradient; 0: any.")
    lora_rank: int = _option(0, "Train low-rank additions to the matrices of --init-from; 0: all weights.")
    lora_alpha: float = _option(16.0, "The additions are scaled by alpha / rank.")

    eval_interval: int = _option(200, "Steps between evaluations, each of which writes a checkpoint.")
    eval_iters: int = _option(20, "Batches in an evaluation of either split; fewer where data ends.")
    log_interval: int = _option(1, "Steps between reports.")
    sample_tokens: int = _option(200, "Length of the sample that follows an evaluation; 0: none.")
    sample_prompt: str = _option("", "What the sample begins with.")

    device: str = _option("auto", "cpu, cuda, cuda:1, mps; auto: cuda if there is one, else cpu.")
    dtype: Dtype = _option("auto", "Of the matrix products; auto: the fastest that this machine has.")
    compile: bool = _option(
        False, "Compile the model with torch.compile: a minute at the start, faster after."
    )
    threads: int = _option(0, "CPU threads; 0: one per physical core.")
    seed: int = _option(1337, "Of weights, order of data, dropout and samples.")

    def model_config(self, vocab_size: int) -> "ModelConfig":
        """The architecture, with what 0 stands for filled in."""
        from llamatui.backends.checkpoint import ModelConfig

        hidden_dim = self.hidden_dim or -(-(8 * self.dim // 3) // 32) * 32
        return ModelConfig(
            dim=self.dim,
            hidden_dim=hidden_dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            vocab_size=vocab_size,
            max_seq_len=self.max_seq_len,
            rope_theta=self.rope_theta,
            shared_classifier=self.tied,
        )


def with_defaults(settings: dict[str, Any]) -> TrainConfig:
    """A run that is to be this, and by default else: a short one warms up for a tenth of its steps."""
    config = TrainConfig(**settings)
    if "warmup_iters" in settings:
        return config
    return replace(config, warmup_iters=min(config.warmup_iters, config.max_iters // 10))


def config_of(model: "ModelConfig", wanted: TrainConfig) -> TrainConfig:
    """`wanted` with the architecture of a model that exists; windows stay as long where they fit."""
    return replace(
        wanted,
        dim=model.dim,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        hidden_dim=model.hidden_dim,
        max_seq_len=min(wanted.max_seq_len, model.max_seq_len),
        rope_theta=model.rope_theta,
        tied=model.shared_classifier,
    )


def check(config: TrainConfig) -> None:
    """Checks what needs no data and no machine.

    Raises:
        UsageError: A number makes no sense, or two do not go together.
    """
    c = config
    positive = (
        "dim", "n_layers", "n_heads", "max_seq_len", "rope_theta", "batch_size", "grad_accumulation",
        "max_iters", "learning_rate", "lora_alpha", "eval_interval", "eval_iters", "log_interval",
    )  # fmt: skip
    for entry in fields(c):
        name, value = entry.name, getattr(c, entry.name)
        if not isinstance(value, (int, float)):
            continue
        if name in positive and not value > 0:
            raise _out_of_range(name, "a positive number", value)
        if not value >= 0:
            raise _out_of_range(name, "a number from 0", value)
        if value == float("inf"):
            raise _out_of_range(name, "a finite number", value)
        if isinstance(value, int) and value >= 1 << 31:
            raise _out_of_range(name, "a number below 2^31", value)
        if name in ("dropout", "beta1", "beta2") and value >= 1:
            raise _out_of_range(name, "a number from 0 to less than 1", value)
    if c.sample_prompt.encode("utf-8", "replace").decode() != c.sample_prompt:
        raise UsageError("sample_prompt: expected UTF-8, found other bytes", _choose("sample_prompt"))
    if c.threads > 1024:
        raise _out_of_range("threads", "at most 1024", c.threads)
    if c.dim % c.n_heads or c.dim // c.n_heads % 2:
        raise UsageError(
            f"dim {c.dim}, n_heads {c.n_heads}: expected heads of an even width, found {c.dim / c.n_heads:g}",
            f"choose a dim that is a multiple of {2 * c.n_heads}",
        )
    if c.n_heads % (c.n_kv_heads or c.n_heads):
        raise UsageError(
            f"n_kv_heads: expected a divisor of n_heads {c.n_heads}, found {c.n_kv_heads}",
            "choose a divisor: each key and value head serves the same number of query heads",
        )
    if c.warmup_iters >= c.max_iters:
        raise UsageError(
            f"warmup_iters: expected less than max_iters {c.max_iters}, found {c.warmup_iters}",
            "choose a smaller --warmup-iters: the learning rate would not come to its highest",
        )
    if c.min_lr > c.learning_rate:
        raise UsageError(
            f"min_lr {c.min_lr:g}: expected at most learning_rate {c.learning_rate:g}", _choose("min_lr")
        )


def _out_of_range(name: str, expected: str, found: float) -> UsageError:
    return UsageError(f"{name}: expected {expected}, found {found}", _choose(name))


def _choose(name: str) -> str:
    return f"choose another with --{name.replace('_', '-')}, or in the config"


def read_config(path: Path) -> dict[str, Any]:
    """The settings that a TOML file names.

    Raises:
        UsageError: It cannot be read, has a key that is none of ours, or a value of another type.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "check the name") from error
    except ValueError as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        found = f"something else: {error}" if is_text else "other bytes than UTF-8"
        raise UsageError(
            f"{path}: expected TOML, found {found}", "write each setting on a line: learning_rate = 1e-3"
        ) from error
    return checked_values(content, str(path))


def checked_values(content: dict[str, Any], where: str) -> dict[str, Any]:
    """`content` with every value in its field's type.

    Raises:
        UsageError: A key is none of ours, or a value of another type.
    """
    kinds = get_type_hints(TrainConfig)
    values = {}
    for key, value in content.items():
        if isinstance(value, dict):
            raise UsageError(
                f"{where}: expected all settings at the top level, found a table: [{key}]",
                f"leave out the line [{key}]",
            )
        if key not in kinds:
            near = get_close_matches(key, kinds, 1)
            hint = f"did you mean {near[0]}?" if near else "see llamatui train run --help"
            raise UsageError(f"{where}: unknown setting {key!r}", hint)
        kind = kinds[key]
        if choices := get_args(kind):
            valid, expected = value in choices, "one of " + ", ".join(choices)
        else:
            value = float(value) if kind is float and type(value) is int and abs(value) < 1 << 63 else value
            valid, expected = type(value) is kind, EXPECTED[kind]
        if not valid:
            raise UsageError(f"{where}: {key}: expected {expected}, found {value!r:.60}")
        values[key] = value
    return values


def check_fixed(fixed: TrainConfig, settings: dict[str, Any], names: Iterable[str], where: str) -> None:
    """Checks that settings do not ask for what cannot change. 0, where it means "choose", asks for nothing.

    Raises:
        UsageError: One does.
    """
    for name in names:
        before, wanted = getattr(fixed, name), settings.get(name)
        if wanted not in (None, before) and not (wanted == 0 and name in ("n_kv_heads", "hidden_dim")):
            raise UsageError(
                f"{name}: expected {before}, that of {where}, found {wanted}",
                "leave it out, or begin a new model in another folder",
            )


def to_toml(config: TrainConfig) -> str:
    """All settings, each under what it is, for `--config`."""
    lines = []
    for entry in fields(config):
        # A string, number or boolean is written in TOML as it is in JSON, but for DEL.
        value = json.dumps(getattr(config, entry.name), ensure_ascii=False).replace("\x7f", "\\u007f")
        lines += [f"# {entry.metadata['help']}", f"{entry.name} = {value}"]
    return "\n".join(lines) + "\n"
