"""Heads that draw from torch's global random numbers in turn draw what each would draw alone."""

import torch

from pipeline.training.randomness import OwnRandom

CPU = torch.device("cpu")


def draws(random: OwnRandom, count: int) -> list[float]:
    with random.entered():
        return torch.rand(count).tolist()


def test_each_goes_on_where_it_stood_whoever_draws_between() -> None:
    torch.manual_seed(5)
    alone = torch.rand(6).tolist()
    first, second = OwnRandom(5, CPU), OwnRandom(6, CPU)
    turns: list[float] = []
    for _ in range(3):
        turns += draws(first, 2)
        draws(second, 7)
        torch.rand(3)
    assert turns == alone


def test_what_is_outside_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4).tolist()
    torch.manual_seed(1)
    random = OwnRandom(9, CPU)
    draws(random, 5)
    assert torch.rand(4).tolist() == expected


def test_a_state_carries_over() -> None:
    first, second = OwnRandom(2, CPU), OwnRandom(3, CPU)
    draws(first, 3)
    second.load_state_dict(first.state_dict())
    assert draws(second, 4) == draws(first, 4)
