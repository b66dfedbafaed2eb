"""Every TensorDict key that the parts share, with its shape, its unit, its writer and its readers.

Shapes: ``B`` states or transitions of a batch, ``K`` particles (sampled actions) per state, ``o`` observation
size, ``a`` action size, ``m`` cost signals. A collected batch has the shape ``[N, T]`` in place of ``[B]``:
``N`` environments and ``T`` steps. A part that can use other names takes them as arguments, and these names
are its defaults.

| key | shape | unit | written by | read by |
|---|---|---|---|---|
| ``observation`` | [B, o] | - | environment | policy, critics, particles, M-step, actor losses |
| ``action`` | [B, a] | of the action space; may lie outside its bounds | policy | environment, critics |
| ``loc`` | [B, a] | of the action, before squashing | policy | particles, M-step, SAC loss |
| ``scale_tril`` | [B, a, a] | as ``loc``, Cholesky factor | Gaussian policy | particles, M-step |
| ``scale`` | [B, a] | as ``loc``, standard deviation | squashed Gaussian policy | SAC loss |
| ``("next", "observation")`` | [B, o] | - | environment | critics |
| ``("next", "reward")`` | [B, 1] | reward per step | environment | evaluation, critics |
| ``("next", "cost")`` | [B, m] | cost per step | environment | evaluation, critics |
| ``("next", "terminated")`` | [B, 1] | bool: the task ended | environment | critics |
| ``("next", "truncated")`` | [B, 1] | bool: the episode was cut off | environment | replay |
| ``("next", "done")`` | [B, 1] | bool: either of these | environment | collector, replay, evaluation |
| ``("next", "episode_reward")`` | [B, 1] | undiscounted sum so far | ``RewardSum`` | episode statistics |
| ``("next", "episode_cost")`` | [B, m] | undiscounted sum so far | ``RewardSum`` | episode statistics |
| ``("next", "step_count")`` | [B, 1] | steps of the episode so far | ``StepCounter`` | episode statistics |
| ``budget_left`` | [B, m] | share of the cost limit | ``Saute`` | environment |
| ``cost_limit`` | [B, m] | cost per episode | ``SampledLimit`` | environment, ``RangeControl`` |
| ``episode_draw`` | [B, 1] | drawn from [0, 1) for each episode | ``TensorDictPrimer`` | acting policy |
| ``deterministic`` | [B, 1] | bool: an episode without noise | acting policy | loop, multipliers |
| ``steps_to_next_obs`` | [B] | steps | replay | critics |
| ``index`` | [B] | position in the buffer | replay | prioritized replay |
| ``_weight`` | [B] | importance weight; absent means 1 | prioritized replay | critics |
| ``td_error`` | [B] | discounted reward and cost | critics | prioritized replay |
| ``("particles", "action")`` | [B, K, a] | of the action | particles | M-step |
| ``("particles", "latent")`` | [B, K, a] | as ``loc``; of a squashed Gaussian alone | particles | M-step |
| ``("particles", "loc")`` | [B, a] | as ``loc``, reference policy | particles | M-step |
| ``("particles", "scale_tril")`` | [B, a, a] | as above, Cholesky factor | particles | M-step |
| ``("particles", "q_reward")`` | [B, K] | discounted reward | particles | E-step |
| ``("particles", "q_cost")`` | [B, K, m] | discounted cost (Q units) | particles | E-step |
| ``("particles", "log_prior")`` | [B, K] | log-probability; absent means uniform | learner | E-step |
| ``("particles", "weight")`` | [B, K] | probability; rows sum to 1 | E-step | M-step |

The replay buffer forms n-step transitions with `n_step_transform`. It replaces ``("next", "reward")`` and
``("next", "cost")`` by discounted sums over ``steps_to_next_obs`` steps. The next observation and the flags
are then those at the end of these steps. The critics do not add the next value if ``terminated`` is set, but
they add it after a truncation. The budget and the multipliers receive the ``episode_cost`` of finished
episodes from the episode statistics. Only a learner over an enumerated set of actions writes ``log_prior``.

A recipe may use further keys that no other file reads, such as ``logits`` in ``recipes/discrete_cvpo.py`` and
the advantages in ``recipes/ppo_lag.py``.
"""

from __future__ import annotations

OBSERVATION = "observation"
ACTION = "action"
LOC = "loc"
SCALE_TRIL = "scale_tril"

EPISODE_DRAW = "episode_draw"
DETERMINISTIC = "deterministic"

REWARD = ("next", "reward")
COST = ("next", "cost")
DONE = ("next", "done")
TERMINATED = ("next", "terminated")
TRUNCATED = ("next", "truncated")
NEXT_OBSERVATION = ("next", "observation")
EPISODE_REWARD = ("next", "episode_reward")
EPISODE_COST = ("next", "episode_cost")
STEP_COUNT = ("next", "step_count")

PARTICLE_ACTION = ("particles", "action")
PARTICLE_LATENT = ("particles", "latent")
PARTICLE_LOC = ("particles", "loc")
PARTICLE_SCALE_TRIL = ("particles", "scale_tril")
PARTICLE_Q_REWARD = ("particles", "q_reward")
PARTICLE_Q_COST = ("particles", "q_cost")
PARTICLE_LOG_PRIOR = ("particles", "log_prior")
PARTICLE_WEIGHT = ("particles", "weight")
