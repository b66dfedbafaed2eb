"""``check_env`` runs an environment through the laws that training relies on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, OneHot
from torchrl.envs import EnvBase, ParallelEnv, RewardSum, TransformedEnv, check_env_specs

from safe_components import keys
from safe_components.envs.from_factory import env_from_factory
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.make_env import make_env

_FLAGS = ("done", "terminated", "truncated")
Laws: TypeAlias = "dict[str, Callable[[_Subject], str | None]]"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one law.

    Attributes:
        law: name of the law.
        verdict: ``"ok"``, ``"note"`` (kept, but worth knowing) or ``"FAIL"``.
        text: what was found; empty if the law holds.
    """

    law: str
    verdict: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:4}  {self.law}" + (f": {self.text}" if self.text else "")


@dataclasses.dataclass(frozen=True)
class EnvReport:
    """The outcome of :func:`check_env`. Its text has one line per law; it is true if no law is broken.

    Attributes:
        name: name of the environment.
        findings: one per law, in the order in which they were checked.
    """

    name: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The laws that are broken."""
        return tuple(finding for finding in self.findings if finding.verdict == "FAIL")

    def __bool__(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        broken = len(self.failures)
        verdict = f"{broken} of {len(self.findings)} laws broken" if broken else "fit for training"
        return "\n".join([f"{self.name}: {verdict}", *(f"  {finding}" for finding in self.findings)])

    def raise_if_broken(self) -> None:
        """Raise ValueError with the report's text if a law is broken."""
        if not self:
            raise ValueError(str(self))


@dataclasses.dataclass
class _Subject:
    """An environment, and the rollout of random actions that several laws look at."""

    env: EnvBase
    steps: int
    data: TensorDictBase | None = None

    @property
    def rollout(self) -> TensorDictBase:
        """Random steps [..., T], with resets in between."""
        if self.data is None:
            self.data = _random(self.env, self.steps, 0)
        return self.data


def check_env(
    env: str | EnvBase | gymnasium.Env[Any, Any] | Callable[[], EnvBase | gymnasium.Env[Any, Any]],
    *,
    steps: int = 100,
    **options: Any,
) -> EnvReport:
    """Check that an environment keeps the laws that training relies on, with random actions.

    | law | |
    |---|---|
    | made | the environment can be made, reset and stepped |
    | specs | what steps write has the keys, shapes and dtypes of the specs (TorchRL's ``check_env_specs``) |
    | signals | reward [..., 1] and cost [..., m] are float32 and finite, and costs are at least 0 |
    | seeds | one seed gives one course, also through ``reset(seed=...)``, and different copies differ |
    | continuity | a step starts where the last one ended, and an episode's last observation is its own |
    | flags | ``done`` is ``terminated`` or ``truncated`` |
    | time limit | an episode that does not terminate is truncated at ``max_episode_steps`` |
    | sums | TorchRL's ``RewardSum`` of reward and cost equals the sum of the steps |
    | partial resets | a reset of some copies leaves the others alone |
    | memory | later steps do not change what earlier ones returned, nor does writing into it |
    | actions | an action beyond a bound acts like the bound; NaN is an error |

    An environment that resets itself from random starts and does not say so cannot be told from one that ends
    in a random state; no check finds it.

    Args:
        env: an id for ``make_env``, an environment of TorchRL with a cost, a Gymnasium environment, or a
            function or class that makes one of them (see `env_from_factory`). A Gymnasium environment is put
            into a ``GymnasiumBatch``. An environment that was passed in is stepped and reset, and stays open.
        steps: number of random steps. Episodes up to ten times as long are run to their end.
        options: handed to ``make_env``, ``env_from_factory`` or ``GymnasiumBatch``, for example
            ``num_envs=2`` or ``cost_keys``.

    A broken law of the specs ends the check, because the other laws rely on them.

    Returns:
        The report. Print it, or call ``raise_if_broken`` in a test.

    Example:
        >>> report = check_env("PointCircle", num_envs=2, max_episode_steps=40, x_lim=0.1)
        >>> bool(report)
        True
        >>> print(report)
        PointCircle: fit for training
          ok    made
          ok    specs
          ok    signals
          ok    seeds
          ok    continuity
          ok    flags
          ok    time limit
          ok    sums
          ok    partial resets
          ok    memory
          ok    actions
    """
    name = env if isinstance(env, str) else type(getattr(env, "unwrapped", env)).__name__
    if steps < 10:
        raise ValueError(f"steps is {steps}, must be at least 10")
    try:
        made = _made(env, options)
        made.reset()
    except Exception as error:  # an environment may raise anything
        return EnvReport(name, (Finding("made", "FAIL", _said(error)),))
    name = getattr(made, "name", None) or name
    subject, findings = _Subject(made, steps), [Finding("made", "ok")]
    for law, check in _LAWS.items():
        try:
            note = check(subject)
            findings.append(Finding(law, "note" if note else "ok", note or ""))
        except Exception as error:  # an environment may raise anything
            findings.append(Finding(law, "FAIL", _said(error)))
            if law == "specs":  # the others rely on it
                break
    if made is not env and not isinstance(env, gymnasium.Env):
        made.close()
    return EnvReport(name, tuple(findings))


def _made(env: Any, options: dict[str, Any]) -> EnvBase:
    if isinstance(env, EnvBase):
        if options:
            raise ValueError(f"options {sorted(options)} need an id or a function that makes the environment")
        return env
    if isinstance(env, str):
        return make_env(env, **options)
    if isinstance(env, gymnasium.Env):
        return GymnasiumBatch(lambda: env, **options)
    return env_from_factory(env, getattr(env, "__name__", "the factory"), **options)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, _Broken):
        return text
    return f"{type(error).__name__}: {text[:400] + ' ...' if len(text) > 400 else text}"


class _Broken(Exception):
    """A law is broken; the message says how."""


def _require(holds: bool | torch.Tensor, text: str) -> None:
    if not bool(holds):
        raise _Broken(text)


def _random(env: EnvBase, steps: int, seed: int | None, policy: Any = None) -> TensorDictBase:
    if seed is not None:
        env.set_seed(seed)
    torch.manual_seed(0)
    return env.rollout(steps, policy, break_when_any_done=False)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _specs(subject: _Subject) -> None:
    for key in (keys.OBSERVATION, keys.ACTION):
        spec = subject.env.observation_spec if key == keys.OBSERVATION else subject.env.full_action_spec
        _require(key in spec.keys(True, True), f"the environment has no {key!r}")
    for key in ("reward", "cost"):
        found = key in subject.env.full_reward_spec.keys(True, True)
        _require(found, f"{key!r} is not in full_reward_spec")
    torch.manual_seed(0)
    logger = logging.getLogger("torchrl")
    level = logger.level
    logger.setLevel(logging.WARNING)  # TorchRL announces its success
    try:
        check_env_specs(subject.env, seed=0)
    finally:
        logger.setLevel(level)


def _signals(subject: _Subject) -> str | None:
    steps = subject.rollout["next"]
    for key in ("reward", "cost"):
        value = steps[key]
        _require(value.dtype == torch.float32, f"{key} is {value.dtype}, must be torch.float32")
        _require(
            value.ndim == steps.ndim + 1, f"{key} has shape {tuple(value.shape)}, must end in one dimension"
        )
        _require(value.isfinite().all(), f"{key} is not finite")
    _require(steps["reward"].shape[-1] == 1, f"reward has {steps['reward'].shape[-1]} numbers, must have 1")
    lowest = min(steps["cost"].flatten().tolist(), default=0.0)
    _require(lowest >= 0, f"a cost is {lowest:g}, must be at least 0")
    _require(steps[keys.OBSERVATION].isfinite().all(), "an observation is not finite")
    if steps["cost"].shape[-1] and not steps["cost"].any():
        return f"no cost in {steps.numel()} random steps"
    return None


def _seeds(subject: _Subject) -> str | None:
    env, data = subject.env, subject.rollout
    again = _random(env, subject.steps, 0)
    for key in (keys.OBSERVATION, "reward", "cost", "done"):
        _require(
            _same(again["next", key], data["next", key]),
            f"set_seed(0) twice gives different {key} with the same actions: draw only from self.np_random, "
            "after super().reset(seed=seed)",
        )
    first = data[keys.OBSERVATION][..., 0, :]
    _require(
        _same(env.reset(seed=0)[keys.OBSERVATION], first),
        "reset(seed=0) differs from set_seed(0) and reset()",
    )
    env.set_seed(1)
    if _same(env.reset()[keys.OBSERVATION], first):
        return "another seed gives the same start, as in a task without randomness"
    rows = first.reshape(-1, first.shape[-1])
    _require(
        rows.unique(dim=0).shape[0] == rows.shape[0], "two copies start alike, and so would repeat each other"
    )
    return None


def _continuity(subject: _Subject) -> str | None:
    data = subject.rollout
    if not data["next", "done"].any():
        data = _random(subject.env, subject.steps * 10, 0)
    ends = data["next", "done"][..., :-1, 0]
    equal = (data["next", keys.OBSERVATION][..., :-1, :] == data[keys.OBSERVATION][..., 1:, :]).all(-1)
    _require(equal[~ends].all(), "a step does not start with the observation in which the last one ended")
    if not ends.any():
        return f"no episode ended within {data.shape[-1]} random steps"
    varies = data[keys.OBSERVATION].reshape(-1, data[keys.OBSERVATION].shape[-1]).unique(dim=0).shape[0] > 1
    _require(
        not (varies and equal[ends].all()),
        "the last observation of every episode is the first one of the next: the environment resets itself "
        'without saying so; turn that off, or leave the last observation in info["final_obs"]',
    )
    return None


def _flags(subject: _Subject) -> None:
    steps = subject.rollout["next"]
    for key in _FLAGS:
        _require(steps[key].dtype == torch.bool, f"{key} is {steps[key].dtype}, must be torch.bool")
    either = steps["terminated"] | steps["truncated"]
    _require((steps["done"] == either).all(), "done is not terminated or truncated")


def _time_limit(subject: _Subject) -> str | None:
    env = subject.env
    limit = getattr(env, "max_episode_steps", None)
    if not isinstance(limit, int):
        return "none is known: recipes need max_episode_steps"
    length = -(-limit // getattr(env, "frame_skip", 1))
    if length > 10 * subject.steps:
        return f"{length} steps, which were not run; steps={length // 10 + 1} runs them"
    steps = _random(env, length, 0)["next"]
    first = steps["done"].cumsum(-2) == 0
    ran = ~first[..., :-1, :].any(-2) if length == 1 else first[..., -2, :]
    _require(
        steps["truncated"][..., -1, :][ran].all(),
        f"an episode that did not terminate was not truncated at max_episode_steps {limit}",
    )
    early = steps["truncated"][..., :-1, :] & ~steps["terminated"][..., :-1, :]
    return f"an episode was truncated before max_episode_steps {limit}" if early.any() else None


def _sums(subject: _Subject) -> None:
    sums = RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])
    steps = _random(TransformedEnv(subject.env, sums), subject.steps, 0)["next"]
    for key in ("reward", "cost"):
        total = torch.zeros_like(steps[key][..., 0, :])
        for t in range(steps.shape[-1]):
            total = total + steps[key][..., t, :]
            _require(
                torch.allclose(steps[f"episode_{key}"][..., t, :], total, rtol=1e-4, atol=1e-4),
                f"the sum of {key} over an episode differs from that of its steps",
            )
            total = total * ~steps["done"][..., t, :]


def _partial_resets(subject: _Subject) -> str | None:
    env = subject.env
    if env.batch_size.numel() == 1:
        return "there is one copy; num_envs=2 checks them"
    chosen = torch.zeros((*env.batch_size, 1), dtype=torch.bool, device=env.device)
    chosen.view(-1)[0] = True
    courses = []
    for resets in (True, False):
        state = _random(env, 3, 0)[..., -1]["next"].exclude("reward", "cost")
        for flag in _FLAGS:
            state[flag] = torch.zeros_like(state[flag])
        if resets:
            state = env.reset(state.set("_reset", chosen.clone()))
        action = env.full_action_spec[keys.ACTION].zero()
        step = env.step(state.exclude("_reset").set(keys.ACTION, action))
        courses.append(torch.stack([step[keys.OBSERVATION], step["next", keys.OBSERVATION]]))
    unchanged = (courses[0] == courses[1]).all(0).all(-1, keepdim=True)
    _require(unchanged[~chosen].all(), "a reset of the first copy changed others")
    return None


def _memory(subject: _Subject) -> None:
    env = subject.env
    env.set_seed(0)
    torch.manual_seed(0)
    td, kept = env.reset(), []
    for _ in range(5):
        td = env.rand_step(td)
        kept.append((td["next"], td["next"].clone()))
        if bool(td["next", "done"].any()):
            break
        td = env.step_mdp(td)
    env.reset()
    for returned, copied in kept:
        _require(
            all(_same(returned[key], copied[key]) for key in copied.keys(True, True)),
            "a later step or reset overwrote what an earlier step had returned",
        )


def _actions(subject: _Subject) -> None:
    env = subject.env
    spec = env.full_action_spec[keys.ACTION]
    if isinstance(spec, Bounded):
        for bound, factor in ((spec.space.high, 3.0), (spec.space.low, -3.0)):
            width = spec.space.high - spec.space.low
            at, beyond = (_acted(env, action) for action in (bound, bound + factor * width))
            for key in (keys.OBSERVATION, "reward", "cost"):
                _require(
                    _same(at[key], beyond[key]), "an action beyond the bounds does not act like the bound"
                )
    if isinstance(env, ParallelEnv):
        return  # an error would end its workers
    if isinstance(spec, Bounded | OneHot) and spec.dtype.is_floating_point:
        try:
            _acted(env, torch.full_like(spec.zero(), torch.nan))
        except Exception:  # of any type: the environment refuses it
            env.reset()
            return
        raise _Broken("an action of NaN is executed")


def _acted(env: EnvBase, action: torch.Tensor) -> TensorDictBase:
    env.set_seed(0)
    torch.manual_seed(0)
    state = env.reset()
    return env.step(TensorDict({**state, keys.ACTION: action.clone()}, state.batch_size, state.device))[
        "next"
    ]


_LAWS: Laws = {
    "specs": _specs,
    "signals": _signals,
    "seeds": _seeds,
    "continuity": _continuity,
    "flags": _flags,
    "time limit": _time_limit,
    "sums": _sums,
    "partial resets": _partial_resets,
    "memory": _memory,
    "actions": _actions,
}
