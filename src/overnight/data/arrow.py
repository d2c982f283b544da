"""Arrow's arrays made from buffers.

`pa.array` and `pa.table` import pandas wherever it is installed, which takes each process as long as tokenizing a
million tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Of the integer or float type that the array has, (n,)."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def flags(values: Sequence[bool] | npt.NDArray[np.bool_]) -> pa.Array:
    """True and false."""
    packed = np.packbits(np.array(values, np.bool_), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def strings(values: Sequence[str]) -> pa.Array:
    """Text, below 2 GiB in all."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)])
    assert ends[-1] < 2**31, "too much for Arrow's strings"
    return pa.StringArray.from_buffers(
        len(encoded), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))
    )


def lists(values: Sequence[npt.NDArray[Any]]) -> pa.Array:
    """Arrays of one dtype, each of any length."""
    ends = np.cumsum([0, *map(len, values)])
    inner = numbers(np.concatenate(values))
    return pa.Array.from_buffers(pa.large_list(inner.type), len(values), [None, pa.py_buffer(ends)], children=[inner])


def values(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an array without nulls, (n,), not copied; `to_numpy` imports pandas, too."""
    assert array.null_count == 0, "there is no number for a null"
    dtype = np.dtype(array.type.to_pandas_dtype())
    _, content = array.buffers()
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(content, dtype, len(array), array.offset * dtype.itemsize)
