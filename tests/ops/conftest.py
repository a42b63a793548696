"""Fixtures of the tests that run our CUDA kernels, on a GPU or behind the shim."""

from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import launcher

from pipeline.ops.launching import Launch


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs a kernel on the CPU."""
    return launcher(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
