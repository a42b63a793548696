"""torch's global random numbers as one head sees them, whoever else draws from them in the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OwnRandom:
    """A state of torch's global generators that moves only while it is entered; what is outside stays as it was."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self._cuda):
            torch.manual_seed(seed)
            self._state = self._now()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Draw from this state inside the block."""
        with torch.random.fork_rng(self._cuda):
            torch.set_rng_state(self._state["torch"])
            for device in self._cuda:
                torch.cuda.set_rng_state(self._state["cuda"], device)
            yield
            self._state = self._now()

    def state_dict(self) -> dict[str, Tensor]:
        """Where it stands, for a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there; a checkpoint of another kind of device keeps what it has in common."""
        self._state.update({name: state[name] for name in self._state if name in state})

    def _now(self) -> dict[str, Tensor]:
        state = {"torch": torch.get_rng_state()}
        for device in self._cuda:
            state["cuda"] = torch.cuda.get_rng_state(device)
        return state
