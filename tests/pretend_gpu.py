"""A GPU that is none: tensors that say they are on `cuda:0` while their values lie in this processor's memory.

What mixes devices is refused as a GPU refuses it, and so is what only tensors in the processor's memory can do. A test
can thus send the whole flow to the "GPU" on a machine without one. Kernels, streams and speed remain untested, and so
does what runs inside a backward pass.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
_COPIES = {"copy_", "__setitem__", "__set__", "index_put_", "to", "type_as"}
"""What takes values or indices from the other device too."""
_INDEXES = {"__getitem__", "index_put", "tensor_split"}
"""What on a GPU takes indices in the processor's memory too."""
_JOINS = {"stack", "cat", "concat", "einsum", "matmul", "__matmul__", "bmm", "mm", "linear"}
"""What takes not even a single number from the other device."""
_HOST_ONLY = {"numpy", "__array__", "pin_memory", "is_pinned", "share_memory_"}
_inside = threading.local()


class OnGpu(Tensor):
    """A tensor whose class is its device. Inside torch's own functions it is what it really is."""

    @property
    def device(self) -> torch.device:
        return CPU if _is_inside() else GPU

    @property
    def is_cuda(self) -> bool:
        return self.device == GPU

    @property
    def is_cpu(self) -> bool:
        return self.device == CPU

    def get_device(self) -> int:
        return -1 if _is_inside() else 0

    def __deepcopy__(self, memo: Any) -> Tensor:
        twin = _as(OnGpu, _plain(self).detach().clone()).requires_grad_(self.requires_grad)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))  # `_is_param`
        return memo.setdefault(id(self), twin)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _call(func, args, kwargs or {})


class _Everywhere(TorchFunctionMode):
    """Sees what makes tensors on the GPU out of none that is there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _call(func, args, kwargs or {})


def _call(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One call of a torch function, on the device where a GPU would do it."""
    name = getattr(func, "__name__", "")
    if _is_inside() or (name == "__get__" and not isinstance(args[0], OnGpu)):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if name == "_has_compatible_shallow_copy_type":  # a parameter's class is its device: `Module.to` makes new ones
        return type(args[0]) is type(args[1])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = _check(name, tensors, args, kwargs)
    if name in ("cpu", "cuda", "to", "type"):
        return _moved(func, name, args, kwargs, here)
    target = here
    if "device" in kwargs:
        target = torch.device(kwargs["device"]) if kwargs["device"] is not None else here
        kwargs = {**kwargs, "device": CPU}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != target.type:
        raise RuntimeError(f"{name}: Expected a '{target}' device type for generator but found '{generator.device}'")
    found = _raw(func, args, kwargs)
    if target.type == "cpu" or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)):
        return found
    return tree_map(lambda leaf: _on_gpu(leaf) if isinstance(leaf, Tensor) else leaf, found)


def _check(name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> torch.device:
    """Where a call happens; raises as torch does where its tensors are on two devices."""
    if not any(isinstance(one, OnGpu) for one in tensors):
        return CPU
    if name in _HOST_ONLY and not kwargs.get("force"):
        raise TypeError(f"{name}: can't convert cuda:0 device type tensor to numpy or pin it")
    elsewhere = [one for one in tensors if not isinstance(one, OnGpu)]
    indexed = name in _INDEXES and isinstance(args[0], OnGpu)
    alone = [one for one in elsewhere if one.dim() > 0 or name in _JOINS]
    if alone and not indexed and name not in _COPIES:
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: "
            f"{[(type(one).__name__, tuple(one.shape)) for one in tensors]}"
        )
    owner = args[0] if name in _COPIES | _INDEXES else None
    return CPU if isinstance(owner, Tensor) and not isinstance(owner, OnGpu) else GPU


def _moved(func: Callable[..., Any], name: str, args: Any, kwargs: Any, here: torch.device) -> Any:
    """`cpu`, `cuda` and `to`: a copy where the device changes."""
    tensor, *rest = args
    target = {"cpu": CPU, "cuda": GPU}.get(name, here)
    words = {**kwargs, **{str(place): word for place, word in enumerate(rest)}}
    for word in words.values():
        if isinstance(word, torch.device) or (isinstance(word, str) and word.split(":")[0] in ("cpu", "cuda")):
            target = torch.device(word)
        elif isinstance(word, Tensor):
            target = GPU if isinstance(word, OnGpu) else CPU
    if name == "to":
        swap = lambda word: CPU if isinstance(word, str | torch.device) else word  # noqa: E731
        found = _raw(func, (tensor, *map(swap, rest)), {key: swap(word) for key, word in kwargs.items()})
    else:
        found = tensor
    if target.type == here.type:
        return found if target.type == "cpu" or isinstance(found, OnGpu) else _on_gpu(found)
    copied = _raw(torch.clone, (found,), {})
    return _on_gpu(copied) if target.type == "cuda" else _plain(copied)


def _raw(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with _being_inside(), torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _on_gpu(tensor: Tensor) -> Tensor:
    if isinstance(tensor, OnGpu):
        return tensor
    if tensor.is_leaf and tensor.requires_grad:
        return _as(OnGpu, tensor.detach()).requires_grad_()
    return _as(OnGpu, tensor)


def _plain(tensor: Tensor) -> Tensor:
    return _as(Tensor, tensor) if isinstance(tensor, OnGpu) else tensor


def _as(kind: Any, tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(kind)


def _is_inside() -> bool:
    return getattr(_inside, "depth", 0) > 0


@contextmanager
def _being_inside() -> Generator[None]:
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1


class _Generator(torch.Generator):
    """Of random numbers; it remembers for which device it is."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.recorded = enable_timing, False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: _Event) -> float:
        assert self.timed
        assert end.timed
        return 1.0


class _Stream:
    cuda_stream = 0

    def __init__(self, device: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def wait_event(self, event: _Event) -> None:
        assert event.recorded

    def is_capturing(self) -> bool:
        return False


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, torch believes in one GPU; in threads that begin inside too."""
    state = {"rng": torch.get_rng_state()}
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "a GPU that is none",
        "current_stream": lambda device=None: _Stream(),
        "Stream": _Stream,
        "stream": nullcontext,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 1000,
        "max_memory_allocated": lambda device=None: 2000,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_rng_state": lambda device="cuda": state["rng"].clone(),
        "set_rng_state": lambda new, device="cuda": state.update(rng=new),
        "is_bf16_supported": lambda *_: True,
        "Event": _Event,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch.accelerator, "current_stream", lambda device=None: _Stream())
    patch.setattr(torch, "Generator", _Generator)
    autocast, run = torch.autocast, threading.Thread.run
    patch.setattr(torch, "autocast", lambda kind, *args, **kwargs: autocast("cpu", *args, **kwargs))

    def run_inside(thread: threading.Thread) -> None:
        with _Everywhere():
            run(thread)

    patch.setattr(threading.Thread, "run", run_inside)
    with _Everywhere():
        yield
