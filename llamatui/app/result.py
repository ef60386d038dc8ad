"""The object that `generate --json` prints: schema `llamatui.generate/1`, additive changes only."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from llamatui.app.engine import Generation, Swap, TokenRecord
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.backends.base import Backend
from llamatui.errors import ContextOverflowError, LlamatuiError
from llamatui.tokenizers.base import Tokenizer

SCHEMA = "llamatui.generate/1"


@dataclass
class Result:
    """Grows while a generation runs; `as_json` at any time."""

    prompt: str
    mode: str
    """"generate" or "chat"."""
    id: str = field(default_factory=lambda: f"gen-{uuid.uuid4().hex}")
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    text: str = ""
    stop_sequence: str | None = None
    load_s: float = 0.0
    sha256: str = ""
    """Of the model file."""
    warnings: list[str] = field(default_factory=list)
    records: list[TokenRecord] | None = None
    """Only with `--logprobs`."""
    prompt_ids: Sequence[int] = ()
    """As given, before a shift cut anything."""

    def header(self, model: LoadedModel) -> dict[str, Any]:
        """What is known before the first token."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "created_at": self.created_at,
            "model": {
                "name": model.name,
                "path": str(model.path),
                "sha256": self.sha256,
                "params": model.checkpoint.config.n_params,
                "format": f"v{model.checkpoint.version}",
            },
            "backend": backend_json(model.backend),
            "mode": self.mode,
        }

    def as_json(
        self, model: LoadedModel, sampler: Sampler, generation: Generation, error: LlamatuiError | None = None
    ) -> dict[str, Any]:
        times = generation.timings
        content: dict[str, Any] = {
            **self.header(model),
            "backend": backend_json(generation.session.backend, generation.swap),
            "sampling": {**asdict(sampler.settings), "seed": sampler.seed},
            "prompt": self.prompt,
            "text": self.text,
            "finish_reason": generation.finish_reason,
            "stop_sequence": self.stop_sequence,
            "context": {
                "limit": generation.session.context,
                "used": generation.session.cache.length,
                "policy": generation.limits.overflow,
                "dropped_tokens": generation.dropped_tokens,
            },
            "usage": {
                "prompt_tokens": len(self.prompt_ids),
                "cached_tokens": generation.cached_tokens,
                "completion_tokens": len(generation.new_tokens),
            },
            "timings": {
                "load_ms": _ms(self.load_s),
                "prefill_ms": _ms(times.prefill_s),
                "ttft_ms": _ms(times.ttft_s),
                "decode_ms": _ms(times.decode_s),
                "prefill_tps": round(times.prefill_tps, 2),
                "decode_tps": round(times.decode_tps, 2),
            },
            "warnings": self.warnings,
            "error": error_json(error),
        }
        if self.records is not None:
            content["tokens"] = [token_json(model.tokenizer, record) for record in self.records]
            content["prompt_token_ids"] = list(self.prompt_ids)
        return content


def failure_json(prompt: str, mode: str, error: LlamatuiError | None = None) -> dict[str, Any]:
    """The object for a run that ended before it began: by an error, or interrupted where there is none."""
    empty = Result(prompt, mode)
    reason = "context" if isinstance(error, ContextOverflowError) else "error" if error else "cancelled"
    return {
        "schema": SCHEMA,
        "id": empty.id,
        "created_at": empty.created_at,
        "model": None,
        "backend": None,
        "mode": mode,
        "sampling": None,
        "prompt": prompt,
        "text": "",
        "finish_reason": reason,
        "stop_sequence": None,
        "context": None,
        "usage": None,
        "timings": None,
        "warnings": [],
        "error": error_json(error),
    }


def backend_json(backend: Backend, swap: Swap | None = None) -> dict[str, Any]:
    """The backend that runs, or that ended the text; and which one began it, if another did."""
    swapped = {"from": swap.old, "at": swap.at} if swap else None
    return {"name": backend.name, "threads": backend.threads, "swapped": swapped}


def error_json(error: LlamatuiError | None) -> dict[str, str] | None:
    return {"code": error.code, "message": error.message, "hint": error.hint} if error else None


def token_json(tokenizer: Tokenizer, record: TokenRecord) -> dict[str, Any]:
    """One generated token; logprobs are natural logarithms, before temperature and top-p."""
    return {
        **_piece(tokenizer, record.id),
        "logprob": record.logprob,
        "rank": record.rank,
        "entropy": record.entropy,
        "top": [{**_piece(tokenizer, other.id), "logprob": other.logprob} for other in record.top],
    }


def _piece(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    piece = tokenizer.decode_bytes(token)
    return {"id": token, "text": piece.decode("utf-8", "replace"), "bytes": list(piece)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
