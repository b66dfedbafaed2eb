"""Draw the pictures that open the pages of the explanation, each computed by the part that its page explains.

python docs/scripts/explanations.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from columns import DOCS
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor

from safe_components.critics import Copy
from safe_components.estep import EStepProjector
from safe_components.lagrangian import ExponentiatedMultiplier, GradientMultiplier, Multiplier, PIDMultiplier
from safe_components.mstep import HardTrustRegion, MStepLoss, NoTrustRegion
from safe_components.ops import q_cost_limit
from safe_components.policies import gaussian_policy

matplotlib.use("agg")
from matplotlib import pyplot as plt

OLD, FREE, SAFE = "0.6", "tab:blue", "tab:orange"
LIMIT = 25.0
STEPS = 500


def weights(q_reward: Tensor, q_cost: Tensor, epsilon: float, limits: list[float]) -> Tensor:
    """Return the E-step's weights ``[K]`` of the particles of one state."""
    particles = TensorDict(
        q_reward=q_reward[None], q_cost=q_cost[None, :, : len(limits)], batch_size=[1, len(q_reward)]
    )
    batch = TensorDict(particles=particles, batch_size=1)
    return EStepProjector(epsilon=epsilon, cost_limits=limits)(batch)["particles", "weight"][0]


def draw_estep(path: Path) -> None:
    """One state with one action dimension: scores of the particles, and their weights."""
    torch.manual_seed(0)
    action = (0.6 * torch.randn(60)).sort().values
    scores: list[Callable[[Tensor], Tensor]] = [
        lambda a: 1 - (a - 1).square() / 2,
        lambda a: (6 * (a - 0.6)).sigmoid(),
    ]
    q_reward, q_cost = scores[0](action), scores[1](action)[:, None]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    line = torch.linspace(-1.8, 1.8, 200)
    for score, name, color in zip(scores, ("$Q_r$", "$Q_c$"), ("tab:green", "tab:red"), strict=True):
        left.plot(line, score(line), color=color, label=name)
        left.plot(action, score(action), ".", color=color, markersize=4)
    left.set(xlabel="action", title="particles of one state, scored by the critics")
    for limits, name, color in (
        ([], "most reward in the KL ball", FREE),
        ([0.1], "and an expected cost of at most 0.1", SAFE),
    ):
        weight = weights(q_reward, q_cost, 0.4, limits)
        right.plot(action, weight, ".-", color=color, label=name)
    right.axhline(1 / 60, color=OLD, linestyle="--", label="before the E-step: 1/K")
    right.set(xlabel="action", title="weights of the particles", ylim=(-0.002, 0.065))
    for axes in (left, right):
        axes.legend(fontsize="small")
    _save(figure, path)


def draw_mstep(path: Path) -> None:
    """One state with two action dimensions: the weighted actions, the old policy, and the fitted ones."""
    state = TensorDict(observation=torch.ones(1, 1), batch_size=1)
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    trust_regions = (
        (NoTrustRegion(), "fitted without a trust region", FREE),
        (HardTrustRegion(kl_mean=0.1, kl_cov=0.02), "fitted within the trust region", SAFE),
    )
    for trust_region, name, color in trust_regions:
        torch.manual_seed(0)  # the same policy and the same actions for both
        policy = gaussian_policy(1, action_low=[-1.0, -1.0], action_high=[1.0, 1.0], init_std=0.2)
        action = policy(state.expand(200).clone())["action"].detach()
        weight = weights(action @ torch.tensor([1.0, 0.6]), torch.zeros(200, 1), 0.8, [])
        if color == FREE:
            axes.scatter(*action.T, s=3 + 900 * weight, color="0.75", label="actions, by weight")
            _ellipse(axes, policy(state.clone()), "old policy", "black")
        loss = MStepLoss(policy, trust_region=trust_region)
        Copy(loss)  # π_old, which stays
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        if multipliers := list(trust_region.parameters()):
            optimizer.add_param_group({"params": multipliers, "lr": 0.1})
        particles = TensorDict(action=action[None], weight=weight[None], batch_size=1)
        prepared = loss.prepare(state.clone().set("particles", particles))
        for _ in range(STEPS):
            out = loss(prepared)
            optimizer.zero_grad()
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            optimizer.step()
        _ellipse(axes, policy(state.clone()), name, color)
    axes.set(xlabel="first action", ylabel="second action", aspect="equal")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _ellipse(axes: Any, out: TensorDict, name: str, color: str) -> None:
    """Draw the mean of a policy, and the actions one standard deviation away from it."""
    angle = torch.linspace(0, 2 * torch.pi, 100)
    loc, scale = out["loc"][0].detach(), out["scale_tril"][0].detach()
    axes.plot(*(loc[:, None] + scale @ torch.stack([angle.cos(), angle.sin()])), color=color, label=name)
    axes.plot(*loc, "+", color=color)


def draw_cost_budget(path: Path) -> None:
    """A limit of 25 per episode in the unit of Q, over the length of an episode."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    steps = torch.arange(10, 2001, 10)
    for gamma in (0.97, 0.99, 0.995):
        limits = [float(q_cost_limit([LIMIT], gamma=gamma, episode_length=int(length))) for length in steps]
        axes.plot(steps, limits, label=f"γ = {gamma}")
    axes.axhline(LIMIT, color="black", linestyle="--", label="25 per episode, as the user gives it")
    axes.set(xlabel="steps of an episode", ylabel="limit on Q", ylim=(0, None))
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_lagrangian(path: Path) -> None:
    """Three rules that move a multiplier, on a toy whose cost follows the multiplier late."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    rules: dict[str, Multiplier] = {
        "gradient ascent": GradientMultiplier(LIMIT, 0.001),
        "PID": PIDMultiplier(LIMIT, kp=0.02, ki=0.001, kd=0.02),
        "price": ExponentiatedMultiplier(LIMIT),
    }
    for name, multiplier in rules.items():
        costs, lams = [100.0], [float(multiplier.lam)]
        for _ in range(STEPS):
            lams.append(float(multiplier.update(costs[-1])))
            costs.append(costs[-1] + 0.05 * (100 / (1 + 4 * lams[-1]) - costs[-1]))
        left.plot(costs, label=name)
        right.plot(lams, label=name)
    left.axhline(LIMIT, color="black", linestyle="--", label="limit 25")
    left.set(xlabel="updates", title="cost of an episode")
    right.set(xlabel="updates", title="multiplier λ")
    left.legend(fontsize="small")
    _save(figure, path)


def draw_data_flow(path: Path) -> None:
    """The way of the data through the parts; it ends in the policy, which collects the next data."""
    parts = [
        ("environment", "observation, reward, cost"),
        ("collector", "steps"),
        ("replay buffer", "transitions"),
        ("critics", "$Q_r$, $Q_c$"),
        ("E-step", "weights"),
        ("M-step", "policy"),
    ]
    figure, axes = plt.subplots(figsize=(10, 2.6), layout="constrained")
    arrow = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.5}
    for place, (name, written) in enumerate(parts):
        axes.text(
            place, 0, name, ha="center", va="center", bbox={"boxstyle": "round,pad=0.5", "fc": "#e8f0fb"}
        )
        axes.text(place, -0.75, written, ha="center", va="center", fontsize="small", color="0.35")
        if place:
            axes.annotate("", (place - 0.42, 0), (place - 0.58, 0), arrowprops=arrow)
    axes.text(
        3.5, 1, "particles", ha="center", va="center", bbox={"boxstyle": "round,pad=0.5", "fc": "#e8f0fb"}
    )
    axes.annotate("", (3.25, 0.8), (3, 0.35), arrowprops=arrow)
    axes.annotate("", (4, 0.35), (3.75, 0.8), arrowprops=arrow)
    axes.annotate("", (1, -1.05), (5, -1.05), arrowprops=arrow | {"connectionstyle": "bar,fraction=-0.08"})
    axes.text(3, -1.45, "the policy collects the next steps", ha="center", va="center", fontsize="small")
    axes.set(xlim=(-0.6, 5.6), ylim=(-2.1, 1.4))
    axes.axis("off")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(figures: Path = DOCS / "figures") -> None:
    """Draw all pictures."""
    for draw in (draw_data_flow, draw_estep, draw_mstep, draw_cost_budget, draw_lagrangian):
        draw(figures / f"{draw.__name__.removeprefix('draw_')}.png")


if __name__ == "__main__":
    main()
