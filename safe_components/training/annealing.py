"""Step sizes of the optimizers that fall linearly over a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

__all__ = ["anneal", "annealed_group"]


def annealed_group(parameters: Iterable[Parameter], lr: float, end: float) -> dict[str, Any]:
    """Return a group of parameters for an optimizer, whose step size :func:`anneal` lowers.

    Args:
        parameters: parameters of the group, on one device.
        lr: step size at the start of the run.
        end: share of ``lr`` at the end of the run, in ``(0, 1]``; 1 keeps the step size.
    """
    parameters = list(parameters)
    # A CUDA graph reads the step size anew only from a tensor on its device.
    step_size = torch.tensor(lr, device=parameters[0].device)
    return {"params": parameters, "lr": step_size, "initial_lr": lr, "end": end}


def anneal(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set the step size of each group from :func:`annealed_group`; leave the other groups alone.

        lr = initial_lr (1 - (1 - end) progress)

    A step size that falls ends the oscillation between a policy and the multiplier that follows its costs,
    because a slower policy follows the multiplier without delay.

    Args:
        optimizer: optimizer with such a group.
        progress: share of the run that is over; more than 1 counts as 1.

    Source: decreasing step sizes of stochastic approximation on two time scales, Borkar 2008, "Stochastic
    Approximation: A Dynamical Systems Viewpoint", chapter 6.

    Example:
        >>> weight = Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.Adam([annealed_group([weight], lr=0.1, end=0.5)], fused=True)
        >>> anneal(optimizer, progress=0.5)
        >>> optimizer.param_groups[0]["lr"]
        tensor(0.0750)
    """
    for group in optimizer.param_groups:
        if "end" in group:
            # A checkpoint returns the step size on another device than the parameters.
            group["lr"] = group["lr"].to(group["params"][0].device)
            group["lr"].fill_(group["initial_lr"] * (1 - (1 - group["end"]) * min(progress, 1.0)))
