"""The memory of a step, counted by hand."""

import torch

from pipeline.training.meter import Meter

CPU = torch.device("cpu")
KIB = 1024


def test_what_backward_keeps_is_counted_once_and_the_batch_and_the_weights_are_not() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 16))
    batch = torch.randn(16, 16)
    meter = Meter(CPU, lambda: 100)
    with meter.measured(weighed=True, others=[batch, weight]):
        hidden = batch @ weight  # keeps batch and weight
        grown = hidden.exp()  # keeps its result: 1 KiB
        (grown * grown).sum().backward()  # keeps the same again
    assert meter.step_bytes == 100 + KIB
    with meter.measured(weighed=True, others=[batch, weight]):
        ((batch @ weight).exp().tanh()).sum().backward()  # the results of both
    assert meter.step_bytes == 100 + 2 * KIB
    with meter.measured(weighed=False, others=[]):
        (batch @ weight).exp().exp().exp().sum().backward()
    assert meter.step_bytes == 100 + 2 * KIB
    assert meter.process_bytes > 1e7


def test_of_a_batch_in_parts_the_largest_part_counts() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 16))
    meter = Meter(CPU, lambda: 100)
    with meter.measured(weighed=True, others=[weight]):
        for layers in (1, 2, 1):
            values = torch.ones(16, 16) * weight
            for _ in range(layers):
                values = values.tanh()  # keeps its result: 1 KiB, beside that of the ones
            values.sum().backward()
            meter.part_done()
    assert meter.step_bytes == 100 + 3 * KIB


def test_counting_changes_no_number() -> None:
    def gradient(weighed: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        with Meter(CPU, lambda: 0).measured(weighed=weighed, others=[]):
            model(torch.randn(4, 8)).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    assert torch.equal(gradient(True), gradient(False))


def test_seconds_are_of_the_steps_since_the_last_call() -> None:
    meter = Meter(CPU, lambda: 0)
    assert meter.seconds() == 0
    for _ in range(2):
        with meter.measured(weighed=False, others=[]):
            pass
    assert meter.seconds() > 0
    assert meter.seconds() == 0
