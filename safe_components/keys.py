"""Every TensorDict key the rooms share: shape, unit, who writes it, who reads it.

Shapes: ``B`` states of a batch, ``K`` particles (sampled actions) per state, ``o`` observation
size, ``a`` action size, ``m`` cost signals. A component that needs other names takes them as
arguments; these are the defaults everywhere.

| key | shape | unit | written by | read by |
|---|---|---|---|---|
| ``observation`` | [B, o] | - | environment | policy, critics |
| ``action`` | [B, a] | of the action space; may lie outside its bounds | policy | environment, critics |
| ``loc``, ``scale_tril`` | [B, a], [B, a, a] | of the action | policy | particles, M-step |
| ``("next", "reward")`` | [B, 1] | reward per step | environment | reward critic |
| ``("next", "cost")`` | [B, m] | cost per step | environment | cost critic |
| ``("next", "episode_reward")`` | [B, 1] | undiscounted sum so far | ``RewardSum`` | logging |
| ``("next", "episode_cost")`` | [B, m] | undiscounted sum so far | ``RewardSum`` | logging, multipliers |
| ``("particles", "action")`` | [B, K, a] | of the action | particles | critics, M-step |
| ``("particles", "loc")`` | [B, a] | reference policy at the sampled states | particles | M-step |
| ``("particles", "scale_tril")`` | [B, a, a] | as above, Cholesky factor | particles | M-step |
| ``("particles", "q_reward")`` | [B, K] | discounted reward | particles | E-step |
| ``("particles", "q_cost")`` | [B, K, m] | discounted cost (Q units) | particles | E-step |
| ``("particles", "log_prior")`` | [B, K] | log probability; absent means uniform | discrete policy | E-step |
| ``("particles", "weight")`` | [B, K] | probability, rows sum to 1 | E-step | M-step |
"""

from __future__ import annotations

OBSERVATION = "observation"
ACTION = "action"
LOC = "loc"
SCALE_TRIL = "scale_tril"

REWARD = ("next", "reward")
COST = ("next", "cost")
DONE = ("next", "done")
TERMINATED = ("next", "terminated")
TRUNCATED = ("next", "truncated")
NEXT_OBSERVATION = ("next", "observation")
EPISODE_REWARD = ("next", "episode_reward")
EPISODE_COST = ("next", "episode_cost")

PARTICLE_ACTION = ("particles", "action")
PARTICLE_LOC = ("particles", "loc")
PARTICLE_SCALE_TRIL = ("particles", "scale_tril")
PARTICLE_Q_REWARD = ("particles", "q_reward")
PARTICLE_Q_COST = ("particles", "q_cost")
PARTICLE_LOG_PRIOR = ("particles", "log_prior")
PARTICLE_WEIGHT = ("particles", "weight")
