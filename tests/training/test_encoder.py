"""Observations that are no vector: their entries, the encoder of them, and its training."""

import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_runs import small, train
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, Composite, Unbounded

import cvpo
import td3_lag
from safe_components import keys
from safe_components.critics import ConstrainedQEnsemble, CriticLearner, Polyak
from safe_components.envs import GymnasiumBatch, make_env
from safe_components.mstep import HardTrustRegion, mstep_loss
from safe_components.policies import Encoder, cnn_encoder, encoded_policy, gaussian_policy
from safe_components.training import Replay, Task


class Room(gymnasium.Env):
    """A position that a camera shows, beside a vector of the name that features take."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (8, 6, 3), np.uint8), observation=spaces.Box(-np.inf, np.inf, (2,))
    )
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return self.observe(), {}

    def observe(self):
        gray = int(np.clip(127 + 40 * self.x, 0, 255))
        return {"camera": np.full((8, 6, 3), gray, np.uint8), "observation": np.array([self.x, self.t])}

    def step(self, action):
        self.x, self.t = self.x + 0.1 * float(action[0]), self.t + 1
        return self.observe(), -abs(self.x), False, False, {"cost": float(self.x > 0.5)}


def wrong_shape(spec):
    return TensorDictModule(lambda x: x.float(), ["camera"], ["observation"])


def wrong_entry(spec):
    return TensorDictModule(torch.nn.Linear(2, 2), ["camra"], ["observation"])


def fails(spec):
    return TensorDictModule(torch.nn.Linear(3, 2), ["raw_observation"], ["observation"])


def writes_nothing(spec):
    return TensorDictModule(torch.nn.Linear(2, 2), ["raw_observation"], ["features"])


ROOM = {"id": "test_encoder:Room", "max_episode_steps": 50}
SPEC = Composite(camera=Bounded(0, 255, (8, 6, 3), dtype=torch.uint8), place=Unbounded(2))


def test_a_dictionary_keeps_its_entries_and_an_image_its_type():
    make = functools.partial(GymnasiumBatch, Room, num_envs=3, seed=0)
    torch.manual_seed(0)
    entries = make(flatten=False).rollout(4)
    torch.manual_seed(0)
    flat = make().rollout(4)
    assert entries["camera"].dtype == torch.uint8
    assert entries["camera"].shape == (3, 4, 8, 6, 3)
    both = [entries["camera"].flatten(2).float(), entries["observation"]]
    assert torch.equal(torch.cat(both, -1), flat["observation"])


def parts(encoder, size):
    torch.manual_seed(0)
    policy = gaussian_policy(size, [-1.0], [1.0], hidden_sizes=(8,))
    critic = ConstrainedQEnsemble(size, 1, 1, 1, hidden_sizes=(8,))
    return CriticLearner(critic, policy, gamma=0.9, encoder=encoder)


def transitions(n=6):
    torch.manual_seed(1)
    state = SPEC.expand(n).rand()
    following = (
        SPEC.expand(n)
        .rand()
        .update(
            {
                "reward": torch.randn(n, 1),
                "cost": torch.rand(n, 1),
                "terminated": torch.zeros(n, 1, dtype=torch.bool),
            }
        )
    )
    return state.update({"action": torch.rand(n, 1), "next": following})


def test_the_critics_train_the_encoder_and_the_policy_does_not():
    torch.manual_seed(0)
    encoder = Encoder(cnn_encoder(SPEC), SPEC)
    learner = parts(encoder, encoder.size)
    batch = transitions()
    entries = set(batch.keys())
    # By hand: features with a gradient for this state, constants for the next one.
    by_hand = batch.copy().update(encoder(batch.copy()).select("observation"))
    by_hand["next"] = encoder(batch["next"].copy()).detach()
    torch.manual_seed(2)
    learner.loss(by_hand)["loss_q"].backward()
    expected = [p.grad.clone() for p in encoder.parameters()]
    before = [p.detach().clone() for p in encoder.parameters()]
    torch.manual_seed(2)
    learner.update(batch)
    for p, gradient, old in zip(encoder.parameters(), expected, before, strict=True):
        torch.testing.assert_close(p.grad, gradient)
        assert not torch.equal(p, old)
    assert set(batch.keys()) == entries | {"td_error"}
    features = learner.encode(batch)
    assert features["observation"].shape == (6, encoder.size)
    assert not features["observation"].requires_grad
    assert not features["next", "observation"].requires_grad


def test_a_policy_with_an_encoder_of_its_own_learns_through_it():
    torch.manual_seed(0)
    encoder = Encoder(cnn_encoder(SPEC), SPEC)
    policy = encoded_policy(encoder, gaussian_policy(encoder.size, [-1.0], [1.0], hidden_sizes=(8,)))
    assert policy.in_keys == ["camera", "place"]
    loss = mstep_loss(policy, HardTrustRegion(kl_mean=0.1, kl_cov=0.1))
    Polyak(loss, eps=0.9)
    states = SPEC.expand(5).rand()
    with torch.no_grad():
        dist = policy.get_dist(states.copy())
        action = dist.sample((4,)).movedim(0, 1)
    particles = {
        "action": action,
        "weight": torch.full((5, 4), 0.25),
        "loc": dist.loc,
        "scale_tril": dist.scale_tril,
    }
    out = loss(states.set("particles", TensorDict(particles, [5])))
    out["loss_policy"].sum().backward()
    moved = [p.grad for name, p in loss.named_parameters() if "images" in name]
    assert moved
    assert all(gradient.abs().sum() > 0 for gradient in moved[:2])


def test_images_stay_bytes_in_the_buffer_and_vectors_alone_are_scaled():
    config = small(td3_lag, "--encoder", "safe_components.policies:cnn_encoder", env=ROOM)
    task = Task(config)
    assert task.observation_keys == ["camera", "raw_observation"]
    assert task.observation_bytes == 8 * 6 * 3 + 4 * 2
    replay = Replay.of(config, observation_keys=task.observation_keys)
    steps = task.warm_up(200, seed=0)
    assert steps["raw_observation"].flatten(0, 1).mean(0).abs().max() < 1e-5
    assert steps["camera"].float().mean() > 50
    replay.extend(steps)
    stored = replay.transitions()
    assert stored["camera"].dtype == stored["next", "camera"].dtype == torch.uint8
    assert keys.OBSERVATION not in stored.keys()  # noqa: SIM118


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("test_encoder:wrong_shape", r"writes 'observation' of shape \[2, 8, 6, 3\].*camera \[2, 8, 6, 3\]"),
        ("test_encoder:wrong_entry", "reads 'camra', but the environment writes .*camera"),
        ("test_encoder:fails", r"raises RuntimeError for raw_observation \[2, 2\] torch.float32: mat1"),
        ("test_encoder:writes_nothing", r"writes \['features'\], must write 'observation'"),
        ("test_encoder:nothing", "module 'test_encoder' has no attribute 'nothing'"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_before_training(function, said):
    with pytest.raises(ValueError, match=said):
        Task(small(td3_lag, "--encoder", function, env=ROOM))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [cvpo, td3_lag])
def test_a_policy_is_trained_on_images_of_safety_gymnasium(recipe, tmp_path):
    env = {"id": "SafetyPointGoal1Vision-v0", "num_envs": 1, "max_episode_steps": 50}
    flags = ("--encoder", "safe_components.policies:cnn_encoder", "--total-frames", 600)
    rows, learner = train(recipe, tmp_path / "run", *flags, env=env)
    assert rows["updates"][-1] > 0
    assert np.isfinite(rows["loss_q_reward"]).all()
    shape = make_env("SafetyPointGoal1Vision-v0", flatten=False).observation_spec["vision"].shape
    assert learner.critics.encoder.shapes["vision"] == tuple(shape)
