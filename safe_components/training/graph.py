"""A function of tensors that is recorded once as a CUDA graph and replayed without a wait."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["GraphedCall"]

# Calls that run the function. Libraries choose and allocate in the first; the recording follows the last.
_WARM_UP = 2


class GraphedCall:
    """A function ``(*tensors) -> tensor`` as a CUDA graph, which the host starts as one thing.

    The first two calls run the function on a stream of their own. It is recorded after the second. From the
    third call on, the arguments are copied into the tensors of the graph, the graph is replayed, and its
    output is copied, all on the current stream. The host waits for none of it: it waits when it reads a
    number of the output. (``tensordict.nn.CudaGraphModule`` waits for the device before every replay.)

    While recording, Python runs once more and the device does nothing. What the function does on the host,
    such as counting its calls, therefore happens three times, and not again.

    All calls must come from one stream, or from streams that wait for each other.

    Args:
        function: function of tensors on one CUDA device. No operation in it may make the host wait, and its
            output must not need a gradient.

    Example, on CUDA:
        >>> double = GraphedCall(lambda x: 2 * x)  # doctest: +SKIP
        >>> [float(double(torch.full((), x, device="cuda"))) for x in (1.0, 2.0, 3.0)]  # doctest: +SKIP
        [2.0, 4.0, 6.0]
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function, self._calls = function, 0
        self._inputs: list[Tensor] = []
        self._stream: torch.cuda.Stream
        self._graph: torch.cuda.CUDAGraph
        self._output: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns.

        Raises:
            ValueError: if an argument differs in shape or format from that of the recorded call.
        """
        if self._calls == _WARM_UP:
            self._require_recorded(inputs)
            torch._foreach_copy_(self._inputs, inputs, non_blocking=True)
            self._graph.replay()
            return self._output.clone()
        with torch.cuda.device_of(inputs[0]):  # type: ignore[no-untyped-call]
            if self._calls == 0:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._inputs = [x.clone() for x in inputs]  # the function may change them
            output = self._run_aside()
            self._calls += 1
            if self._calls == _WARM_UP:
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, stream=self._stream):
                    self._output = self._function(*self._inputs)
        return output

    def _run_aside(self) -> Tensor:
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            output = self._function(*self._inputs)
        here.wait_stream(self._stream)
        return output

    def _require_recorded(self, inputs: tuple[Tensor, ...]) -> None:
        given, recorded = ([(list(x.shape), x.dtype) for x in tensors] for tensors in (inputs, self._inputs))
        if given != recorded:
            raise ValueError(f"the graph was recorded for {recorded}, but is called with {given}")
