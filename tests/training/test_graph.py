"""Functions that are recorded as a CUDA graph: with a stand-in for it, and on CUDA the graph itself."""

import time
from contextlib import nullcontext

import pytest
import torch
from devices import DEVICES
from recorded_graph import graphs_on_the_cpu

from safe_components.training.graph import GraphedCall

DEVICE = DEVICES[-1]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(autouse=True)
def graphs():
    with graphs_on_the_cpu() if DEVICE == "cpu" else nullcontext():
        yield


def full(value, *shape):
    return torch.full(shape, value, device=DEVICE)


def test_operations_are_repeated_and_python_is_not():
    total, calls = full(0.0), []

    def function(x):
        calls.append(1)
        total.add_(x.sum() * len(calls))
        x.zero_()  # the caller's tensor stays as it is
        return total * 2

    call, inputs = GraphedCall(function), [full(value, 2) for value in (1.0, 1.0, 3.0, 5.0)]
    answers = [call(x) for x in inputs]
    # 2 * 1 and 2 * 2 are added by Python's own runs. In the recording, which adds nothing, len(calls) is 3.
    assert [*map(float, answers)] == [4.0, 12.0, 48.0, 108.0]
    assert [float(x[0]) for x in inputs] == [1.0, 1.0, 3.0, 5.0]
    assert len(calls) == 3


def test_a_graph_trains_as_the_function():
    """Random numbers, gradients and Adam included."""

    def train(run):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2, device=DEVICE)
        optim = torch.optim.Adam(layer.parameters(), fused=True)
        optim.param_groups[0]["capturable"] = True

        def step(x, y):
            optim.zero_grad()
            loss = (layer(x + 0.1 * torch.randn_like(x)) - y).square().mean()
            loss.backward()
            optim.step()
            return loss.detach()

        step = run(step)
        losses = [step(torch.randn(8, 3, device=DEVICE), torch.randn(8, 2, device=DEVICE)) for _ in range(7)]
        return torch.stack(losses), layer.weight.detach().clone()

    exact = {"rtol": 0.0, "atol": 0.0}  # on CUDA, a library may choose another kernel by what is aligned
    tolerance = exact if DEVICE == "cpu" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(train(GraphedCall), train(lambda step: step), **tolerance)


@pytest.mark.parametrize("other", [(3,), (2, 1), (1,)])
def test_arguments_of_another_kind_are_refused(other):
    call = GraphedCall(lambda x: x + 1.0)
    for _ in range(3):
        call(full(0.0, 2))
    with pytest.raises(ValueError, match=r"recorded for \[\(\[2\], torch.float32\)\], but is called with"):
        call(full(0.0, *other))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        call(full(0, 2))


@needs_cuda
def test_the_host_does_not_wait_for_the_device():
    def function(x):
        torch.cuda._sleep(500_000_000)  # a quarter of a second or more
        return x + 1.0

    call = GraphedCall(function)
    for _ in range(3):
        call(full(0.0, 2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    first, second = call(full(1.0, 2)), call(full(2.0, 2))
    asked = time.perf_counter() - began
    assert [float(first[0]), float(second[0])] == [2.0, 3.0]
    answered = time.perf_counter() - began
    assert asked < 0.2 * answered
