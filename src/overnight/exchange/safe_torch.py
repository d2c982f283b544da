"""Files of `torch.save`, read without executing anything that is in them."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from overnight.errors import UserError


class GPTConfig:
    """Stands in for the configuration that build-nanogpt's train_gpt2.py saves as an object: its fields, no code."""


GPTConfig.__module__ = "__main__"

# What checkpoints of tensors and plain values name. torch's own list has constructors as well that take a size: a few
# bytes would have them fill the memory.
NAMED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|__main__ GPTConfig"
    r"|torch (float|bfloat|half|double|int|uint|long|bool)\w*|torch (Size|device)|_codecs encode|builtins (set|complex)"
)
ZIP = b"PK\x03\x04"
PICKLES = 5  # at the beginning of the files that torch wrote before they were zip files


class Refused(Exception):
    """What a file holds that is no checkpoint's."""


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file: tensors, numbers, strings, containers of them, and a GPTConfig as an object.

    UserError where the file holds anything else: nothing of it is imported or called. Memory is that of the file.
    """
    try:
        _look_through(path)
        with torch.serialization.safe_globals([(GPTConfig, "__main__.GPTConfig")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pickle.UnpicklingError, Refused) as error:
        raise UserError(
            f"{path} holds more than weights and plain values, and is not opened: {_reason(error)}"
        ) from None
    except Exception as error:  # on damaged files torch raises what its parser comes up with
        raise UserError(f"{path} cannot be read as a file of torch.save: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, not a dictionary with weights")
    return content


def _look_through(path: Path) -> None:
    """Raises Refused for what would be larger in memory than it is in the file, before any of it is carried out."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:  # so torch decides, whatever archive comes later in the file
            file.seek(0)
            _look_through_pickles(file)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if min((entry.header_offset for entry in entries), default=0) != 0:
            raise Refused("its archive does not begin where the file does")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Refused(f"{entry.filename!a} is compressed, which torch.save never does")
        # torch does not tell upper case from lower case here
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise Refused("two of its entries have the same name")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise Refused("its entries overlap")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                with archive.open(entry) as file:
                    _check_names(file)


def _look_through_pickles(file: IO[bytes]) -> None:
    try:
        for _ in range(PICKLES):
            _check_names(file)
    except ValueError:
        raise ValueError("it is in none of the forms that torch writes") from None


def _check_names(file: IO[bytes]) -> None:
    """Raises Refused where the pickle that begins here names what is not in NAMED."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("STACK_GLOBAL", "INST") or (opcode.name == "GLOBAL" and not NAMED.fullmatch(str(argument))):
            raise Refused(f"it names {str(argument or opcode.name).replace(' ', '.')!a}")


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    naming = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (naming or lines or [type(error).__name__])[-1][:300]
