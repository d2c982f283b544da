"""Files of `torch.save`, read without executing anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from overnight.errors import UserError


class GPTConfig:
    """Stands in for the configuration that build-nanogpt's train_gpt2.py saves as an object: its fields, no code."""


GPTConfig.__module__ = "__main__"


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file: tensors, numbers, strings, containers of them, and a GPTConfig as an object.

    UserError where the file holds anything else: nothing of it is imported or called.
    """
    try:
        with torch.serialization.safe_globals([(GPTConfig, "__main__.GPTConfig")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights and plain values, and is not opened: {_reason(error)}"
        ) from None
    except Exception as error:  # on damaged files torch raises what its parser comes up with
        raise UserError(f"{path} cannot be read as a file of torch.save: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, not a dictionary with weights")
    return content


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    naming = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (naming or lines or [type(error).__name__])[-1][:300]
