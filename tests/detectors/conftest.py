"""Fixtures of the detectors' tests."""

import socket
from typing import Any, NoReturn

import pytest


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error, and the hub's own code is told to be offline."""
    import huggingface_hub.constants

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
