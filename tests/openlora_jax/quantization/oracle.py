"""What a quantised matrix stands for, number by number in float64, written from the description of the formats."""

import numpy as np
from numpy.typing import NDArray

from pallas_kernels.quantized import NF4, Int4Matrix, Int8Matrix, QuantizedMatrix

F64 = NDArray[np.float64]


def numbers(matrix: QuantizedMatrix, group: int) -> F64:
    """The whole matrix, `[rows, columns]`."""
    codes = np.asarray(matrix.codes)
    rows, columns = codes.shape[0], codes.shape[1] * (1 if isinstance(matrix, Int8Matrix) else 2)
    values = np.empty((rows, columns))
    for row, column in np.ndindex(rows, columns):
        values[row, column] = _number(matrix, row, column, column // group)
    return values


def _number(matrix: QuantizedMatrix, row: int, column: int, group: int) -> float:
    scale = float(matrix.scale[row, group])
    if isinstance(matrix, Int8Matrix):
        return scale * int(matrix.codes[row, column])
    block, place = divmod(column, 32)
    byte = int(matrix.codes[row, 16 * block + place % 16])
    code = byte % 16 if place < 16 else byte // 16
    if not isinstance(matrix, Int4Matrix):
        return float(matrix.step[row]) * scale**2 * NF4[code]
    if matrix.offset is None:
        return scale * (code - 8)
    return scale * code + float(matrix.offset[row, group])
