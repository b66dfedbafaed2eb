"""A small environment in JAX whose every number is known. Needs JAX."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    info: Any
    metrics: Any


class Corridor:
    """A walker at x moves by half its action; reward x, cost 1 beyond 1 and speed |action|; ends beyond 3.

    The reset returns Python's numbers, as some simulators do, and the key is part of the state.
    """

    action_size = 1

    def __init__(self, start=None, cost=lambda x: x > 1):
        self.start, self.cost = start, cost

    def reset(self, rng):
        x = jax.random.uniform(rng, minval=-1) if self.start is None else jnp.float32(self.start)
        return State(jnp.stack([x, 0.0]), 0.0, 0.0, {"cost": 0.0, "key": rng}, {"speed": 0.0})

    def step(self, state, action):
        x, t = state.obs[0] + action[0] / 2, state.obs[1] + 1
        info = state.info | {"cost": jnp.float32(self.cost(x))}
        return State(jnp.stack([x, t]), x, jnp.float32(x > 3), info, {"speed": jnp.abs(action[0])})


CORRIDOR = Corridor()  # one object, whose compiled functions the tests share
