"""A process that dies in the middle of its work, for tests that go on from what it left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.training.trainer import Trainer


@contextmanager
def power_cut(after: int, kind: type = Trainer, method: str = "step") -> Iterator[None]:
    """Inside, a method ends that many calls and dies in the next; the block has to come so far, and ends there."""
    work, left = getattr(kind, method), iter(range(after))

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("power cut")
        return work(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, dying)
        with pytest.raises(RuntimeError, match="power cut"):
            yield
