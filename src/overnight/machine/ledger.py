"""The bytes of tensors, counted as they come and go."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITH_MASK = {torch.ops.aten.where.self, torch.ops.aten.masked_fill.Scalar}  # these take theirs as it is
BACKWARD = "backward"  # the part in which autograd's engine is at work
CUDA_BLOCK = 512  # bytes that CUDA's allocator rounds up to
AS_LARGE_AGAIN = {torch.ops.aten.logsumexp.default}  # on their way these hold another tensor of their input's size


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of a device's tensors from the operation that makes them until nobody holds them any more.

    It works on tensors with memory and on fake ones, which have none. Of what an operation takes and gives back on its
    way only the large and well-known is counted. A tensor counts for the part that was said with `enter` when it was
    made, or later with `label`. torch has a mode of this kind, which knows other parts (`_tools.mem_tracker`).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.part = device, ""
        self.held: dict[int, tuple[weakref.ref[Any], int, str]] = {}  # by storage: itself, bytes, part
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    def enter(self, part: str) -> None:
        """What is made from now on is of this part."""
        self.part = part

    def begin(self) -> None:
        """Forgets the peak: another one is looked for from now on."""
        self.peak = Counter(self.now)

    def label(self, tensor: Tensor, part: str) -> None:
        """A tensor is of this part from now on, whenever it was made."""
        self._drop(id(tensor.untyped_storage()))
        self._add(tensor, part)

    def part_of(self, tensor: Tensor) -> str | None:
        """The part of a tensor, or of that which it is a view of; None: it was not seen."""
        entry = self.held.get(id(tensor.untyped_storage()))
        return entry[2] if entry else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._pin_memory.default:  # fake tensors cannot be pinned, and it is no device's memory
            return args[0]
        found = func(*args, **(kwargs or {}))
        # autocast's copies of weights live until its context ends, and longer for the backward pass
        copied = func is torch.ops.aten._to_copy.default and self.part_of(args[0]) == "parameters"
        taken = self._on_the_way(func, args)
        self._count(self.part, taken)
        self._count(self.part, -taken)
        if func is torch.ops.aten.add.Tensor and self.part == BACKWARD and not torch.is_grad_enabled():
            self._drop(id(args[0].untyped_storage()))  # gradients that meet: autograd adds in place but within a mode
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and self.part_of(tensor) is None:
                self._add(tensor, "copies" if copied else self.part)
        return found

    def _on_the_way(self, func: Any, args: Any) -> int:
        """Bytes that an operation takes and gives back, of those that are known to."""
        tensors = [value for value in args if isinstance(value, Tensor) and value.device.type == self.device.type]
        if func in AS_LARGE_AGAIN:
            return sum(tensor.nbytes for tensor in tensors)
        if self.device.type != "cpu" or torch.Tag.pointwise not in func.tags or func in WITH_MASK:
            return 0
        # a CPU converts operands to the widest type whole
        widest = max((tensor.itemsize for tensor in tensors if tensor.is_floating_point()), default=0)
        return sum(tensor.numel() * widest for tensor in tensors if tensor.dim() and tensor.itemsize < widest)

    def _add(self, tensor: Tensor, part: str) -> None:
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key, count = id(storage), storage.nbytes()
        if self.device.type == "cuda":
            count = -(-count // CUDA_BLOCK) * CUDA_BLOCK
        self.held[key] = (weakref.ref(storage, lambda gone: self._drop(key)), count, part)
        self._count(part, count)

    def _drop(self, key: int) -> None:
        entry = self.held.pop(key, None)
        if entry is not None:
            self.now[entry[2]] -= entry[1]

    def _count(self, part: str, count: int) -> None:
        self.now[part] += count
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)
