"""The links of a policy improvement, measured with every batch of frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from safe_components import keys
from safe_components.critics import CalibrationMoments, calibration, calibration_moments
from safe_components.estep import EStepProjector, ParticleSampler, Promise

__all__ = ["Diagnosis"]


class Diagnosis:
    """Promise, delivery and calibration: where an improvement gets lost between the E-step and the episodes.

        for steps in loop.collect():
            loop.record(diagnosis.before(steps))
            for _ in loop.updates_due():
                ...
            loop.record(diagnosis.after())

    The E-step promises a gain by the critic, the M-step delivers a part of it by the same critic, and the
    episodes show whether the critic was right. Each batch of frames is new to the critic and the policy, so
    the numbers are not those of a fit to seen data. The random numbers are its own, so a run takes the
    same course with and without it. docs/diagnosis.md tells how to read the metrics.

    Args:
        policy: policy that acts and learns.
        particles: sampler of the E-step; its reference policy should be the one that collected the frames.
        estep: the E-step.
        gamma: discount of the critic.
        horizon: steps over which an advantage is measured.
        decay: share of the calibration's sums that remains after each batch.
        max_steps: largest number of steps of a batch that are looked at, which bounds the cost.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        particles: ParticleSampler,
        estep: EStepProjector,
        *,
        gamma: float,
        horizon: int = 10,
        decay: float = 0.9,
        max_steps: int = 512,
    ) -> None:
        self.policy, self.particles = policy, particles
        self.gamma, self.horizon, self.decay, self.max_steps = gamma, horizon, decay, max_steps
        self._promise = Promise(particles, estep)
        self._moments: CalibrationMoments | None = None
        self._batches = 0

    @torch.no_grad()
    def before(self, steps: TensorDictBase) -> dict[str, Tensor]:
        """Measure the critic on new steps ``[..., T]``, and note what the E-step promises in their states.

        Returns:
            The metrics ``promised_*``, ``spread_*``, ``slope_*``, ``slope_error_*`` and ``bias_*``, each for
            ``reward []`` and ``cost [m]``.
        """
        steps = steps.reshape(-1, steps.shape[-1])  # one environment has no dimension, and workers have two
        steps = steps[: max(self.max_steps // steps.shape[1], 1), : self.max_steps]
        observation = steps[keys.OBSERVATION].flatten(0, 1)
        chosen = torch.linspace(0, len(observation) - 1, min(len(observation), self.max_steps // 2))
        with self._own_random_numbers(observation.device):
            metrics = self._promise.make(observation[chosen.long()])
            if steps.shape[1] < self.horizon:
                return metrics
            value = self._value(observation)
            next_value = self._value(steps[keys.NEXT_OBSERVATION].flatten(0, 1))
        q_reward, q_cost = self.particles.scores(observation, steps[keys.ACTION].flatten(0, 1).unsqueeze(-2))
        action_value = torch.cat([q_reward, q_cost.squeeze(-2)], -1)
        q, v, after = (x.reshape(*steps.shape, -1) for x in (action_value, value, next_value))
        signal = torch.cat([steps[keys.REWARD], steps[keys.COST]], -1)
        done, terminated = steps[keys.DONE], steps[keys.TERMINATED]
        new = calibration_moments(
            signal, q, v, after, done, terminated, gamma=self.gamma, horizon=self.horizon
        )
        if self._moments is not None:
            new = CalibrationMoments(*(self.decay * x for x in self._moments)) + new
        self._moments = new
        for name, values in calibration(new)._asdict().items():
            for signal_name, entry in (("reward", values[0]), ("cost", values[1:])):
                if bool(entry.isfinite().all()):  # no spread, no slope
                    metrics[f"{name}_{signal_name}"] = entry
        return metrics

    def after(self) -> dict[str, Tensor]:
        """Say what the policy delivers of the last promise: ``delivered_reward``, ``delivered_cost``."""
        return self._promise.keep(self.policy)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the calibration and the number of batches."""
        return {"moments": None if self._moments is None else tuple(self._moments), "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        moments, device = state["moments"], next(self.policy.parameters()).device
        self._moments = None if moments is None else CalibrationMoments(*(m.to(device) for m in moments))
        self._batches = state["batches"]

    @contextmanager
    def _own_random_numbers(self, device: torch.device) -> Iterator[None]:
        self._batches += 1
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._batches)
            yield

    def _value(self, observation: Tensor) -> Tensor:
        """``V`` of the states, the mean score of particles, reward before costs: ``[B, 1 + m]``."""
        states = self.particles(TensorDict({keys.OBSERVATION: observation}, [len(observation)]))
        scores = states[keys.PARTICLE_Q_REWARD].unsqueeze(-1), states[keys.PARTICLE_Q_COST]
        return torch.cat([q.mean(-2) for q in scores], -1)
