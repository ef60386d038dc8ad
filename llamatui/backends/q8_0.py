"""Q8_0: symmetric int8 in groups, as llama2.c's runq.c defines it.

A group of `group_size` weights shares one float32 scale = max(|w|) / 127; a weight is q · scale with q in
-127..127. Groups run along a matrix's input dimension, so `group_size` has to divide it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Q8Tensor:
    """q: (..., rows, cols) int8; scale: (..., rows, cols / group_size) float32."""

    q: npt.NDArray[np.int8]
    scale: FloatArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape

    @property
    def group_size(self) -> int:
        return int(self.q.shape[-1] // self.scale.shape[-1])

    def __getitem__(self, index: "int | slice | npt.NDArray[np.int64]") -> "Q8Tensor":
        """Picks along the first axis: a layer, or rows of a matrix."""
        return Q8Tensor(self.q[index], self.scale[index])

    def dequantize(self) -> FloatArray:
        """float32 values, (..., rows, cols): 4 bytes a weight, newly allocated."""
        groups = self.q.reshape(*self.scale.shape, self.group_size).astype(
            np.float32
        )  # (..., rows, groups, gs)
        groups *= self.scale[..., None]
        return groups.reshape(self.q.shape)  # (..., rows, cols)


def fit_group_size(wanted: int, *input_dims: int) -> int:
    """Largest `wanted` / 2^k that divides every matmul's input dimension."""
    group_size = wanted
    while any(dim % group_size for dim in input_dims):
        group_size //= 2
    return group_size


def quantize(w: FloatArray, group_size: int) -> Q8Tensor:
    """Q8_0 of `w`, (..., cols) float32, rounding half to even. A group of zeros has scale 0."""
    groups = w.reshape(*w.shape[:-1], -1, group_size)  # (..., groups, gs)
    scale = np.abs(groups).max(axis=-1) / np.float32(127)  # (..., groups)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    q = np.rint(groups / divisor)  # (..., groups, gs)
    q = q.clip(-127, 127).astype(np.int8).reshape(w.shape)  # (..., cols); a subnormal scale is not exact
    return Q8Tensor(q, scale)


def group_errors(w: FloatArray, tensor: Q8Tensor) -> FloatArray:
    """Largest |w - dequantized w| of each group, shaped as `tensor.scale`."""
    errors = np.abs(w - tensor.dequantize())  # (..., cols)
    largest: FloatArray = errors.reshape(*tensor.scale.shape, -1).max(axis=-1)  # (..., groups)
    return largest
