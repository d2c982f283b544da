"""Arrow's arrays from buffers are those that pyarrow itself makes, and pandas is not imported for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
from corpora import environment, texts, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from overnight.data import arrow

DTYPES = st.sampled_from([np.uint16, np.uint32, np.int64, np.uint64])


@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, st.integers(0, 20))), st.integers(0, 5))
def test_numbers_there_and_back(values, start):
    made = arrow.numbers(values)
    made.validate(full=True)
    assert made.equals(pa.array(values))
    assert np.array_equal(arrow.values(made[start:]), values[start:])


@given(st.lists(st.text(max_size=8)), st.lists(st.booleans(), max_size=40))
def test_strings_and_flags(strings, flags):
    pairs = [
        (arrow.strings(strings), pa.array(strings, pa.string())),
        (arrow.flags(flags), pa.array(flags, pa.bool_())),
    ]
    for made, wanted in pairs:
        made.validate(full=True)
        assert made.equals(wanted)


@given(st.lists(arrays.arrays(np.uint16, st.integers(0, 6)), min_size=1, max_size=6))
def test_lists(values):
    made = arrow.lists(values)
    made.validate(full=True)
    assert made.equals(pa.array([value.tolist() for value in values], pa.large_list(pa.uint16())))


def test_prepare_does_without_pandas(tmp_path):
    corpus = write_jsonl(tmp_path / "some.jsonl", texts(40))
    program = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas': sys.exit('pandas was asked for')\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from overnight.data.prepare import prepare; from overnight.data.sources import open_source\n"
        f"prepare(open_source('files', [{str(corpus)!r}]), {str(tmp_path / 'out')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)
