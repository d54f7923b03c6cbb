"""Commands on Apple's graphics processor, as far as a processor can play one: `python mps.py '[["train", …], …]'`.

What is sent to the device "mps" stays in this machine's memory, where its storage is marked; whatever is computed from
it is marked too, and a marked tensor of 64-bit floating point numbers is the error that Apple's device makes of it.
With OUT_OF_MEMORY=N a pass of more than N images through a convolution there ends as it would on a full device.
After each command a line on standard error tells how many tensors were sent. The exit code is that of the last.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = torch.device("cpu")


class Marks:
    """The storages that would lie in the device's memory."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.sent = 0

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies there."""
        storage = tensor.untyped_storage()
        known = self.storages.get(storage._cdata)
        return known is not None and not known.expired()

    def add(self, tensor: torch.Tensor) -> None:
        """Note that a tensor lies there, or refuse it as the device does."""
        if tensor.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
                "Please use float32 instead."
            )
        gallery = StorageWeakRef(tensor.untyped_storage())
        self.storages[gallery.cdata] = gallery

    def remove(self, tensor: torch.Tensor) -> None:
        """Note that a tensor does not lie there."""
        self.storages.pop(tensor.untyped_storage()._cdata, None)


def tensors(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Computing(TorchDispatchMode):
    """Marks what is computed from something that lies there."""

    def __init__(self, marks: Marks, most: int) -> None:
        super().__init__()
        self.marks, self.most = marks, most

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors(args, kwargs)
        marked = any(self.marks.has(one) for one in given)
        if marked and "convolution" in str(function) and len(given[0]) > self.most:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB).")
        result = function(*args, **(kwargs or {}))
        for one in tensors(result):
            if marked:
                self.marks.add(one)
            elif not any(one is other for other in given):
                self.marks.remove(one)
        return result


class Moving(TorchFunctionMode):
    """Sends to the device, and fetches from it: both are copies, where the machine beneath would have nothing to do."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("device", "_parse_to"):  # a device is named, and nothing moves
            return function(*args, **(kwargs or {}))
        words, named = list(args), dict(kwargs or {})
        sent = any(is_place(word) for word in (*words, *named.values()))
        fetched = getattr(function, "__name__", "") in ("cpu", "to") and not sent
        fetched = fetched and (function is torch.Tensor.cpu or any(is_place(word, "cpu") for word in words[1:]))
        words = [HERE if is_place(word) else word for word in words]
        named = {name: HERE if is_place(word) else word for name, word in named.items()}
        result = function(*words, **named)
        if not isinstance(result, torch.Tensor) or not (sent or fetched):
            return result
        result = result.clone()
        if sent:
            self.marks.add(result)
            self.marks.sent += 1
        else:
            self.marks.remove(result)
        return result


def is_place(word: Any, type: str = "mps") -> bool:
    return (isinstance(word, torch.device) and word.type == type) or (isinstance(word, str) and word == type)


def main() -> None:
    """Run the commands with a device "mps" that is the best there is."""
    torch.backends.mps.is_available = functools.cache(lambda: True)
    torch.backends.mps.is_built = lambda: True
    torch.mps.empty_cache = lambda: None
    torch.mps.synchronize = lambda: None
    from landmarks.cli.main import run

    code = 0
    for words in json.loads(sys.argv[1]):
        marks = Marks()
        with Computing(marks, int(os.environ.get("OUT_OF_MEMORY", "1000000"))), Moving(marks):
            code = run(words)
        print(f"tensors sent to mps by {words[0]}: {marks.sent}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
