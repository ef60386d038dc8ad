"""What a person may set about sampling. Apart from the sampler, so that no screen waits for NumPy."""

from dataclasses import dataclass

from llamatui.errors import UsageError

MAX_SEED = (1 << 64) - 1
MIN_TEMPERATURE = 1e-5  # below it, float32 logits overflow


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a person may set.

    Raises:
        UsageError: A value out of its range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 0.9
    """Nucleus (arXiv:1904.09751): the smallest set that holds this probability; 0 or 1 is off."""
    top_k: int = 0
    """Keeps the k most likely tokens; 0 is off."""
    min_p: float = 0.0
    """Drops tokens below this fraction of the likeliest one's probability; 0 is off."""
    repeat_penalty: float = 1.0
    """Divides positive and multiplies negative logits of recent tokens (arXiv:1909.05858); 1 is off."""
    seed: int = 0
    """Start of the random numbers, 1..2^64-1; 0 picks one."""

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (0.0, 100.0),
            "top_p": (0.0, 1.0),
            "top_k": (0, 1 << 31),
            "min_p": (0.0, 1.0),
            "repeat_penalty": (0.01, 100.0),
            "seed": (0, MAX_SEED),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must be in {low}..{high}, found {value}")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise UsageError(f"temperature must be 0 or at least {MIN_TEMPERATURE}, found {self.temperature}")
