"""A saved policy: one file, raw observations in, actions inside the bounds out, and no code from the file."""

import pickle
import shutil

import pytest
import torch
from small_runs import small, train
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type

import cvpo
import discrete_cvpo
import ppo_lag
import sac_lag
import td3_lag
from safe_components import cli
from safe_components.envs import make_env
from safe_components.policies import deterministic_policy, gaussian_policy, policy_builder, registry
from safe_components.training import (
    CheckpointError,
    Checkpoints,
    export_policy,
    fit_observation_norm,
    load_policy,
    observation_norm,
)
from safe_components.training.deploy import POLICY_FILE, find_policy, save_policy
from safe_components.training.state_file import write_state

RECIPES = {recipe.Config.recipe: recipe for recipe in (cvpo, discrete_cvpo, sac_lag, td3_lag, ppo_lag)}
BOTH = pytest.mark.parametrize("deterministic", [True, False], ids=["mean", "sampled"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each recipe, and its learner."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: (
            root / name,
            train(recipe, root / name, "--total-frames", 800, "--checkpoint-interval", 200)[1],
        )
        for name, recipe in RECIPES.items()
    }


@pytest.fixture(params=RECIPES)
def run(request, runs):
    return runs[request.param]


def observations(n=64, scale=1.0):
    """Positions and velocities of PointCircle, in its own units."""
    return scale * torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def norm_of(directory):
    """The scaling that the run saved, from the component of its own."""
    norm = observation_norm(4)
    Checkpoints.restore(find_policy(directory).parents[1], {"norm": norm})
    return norm


@BOTH
def test_it_is_the_trained_policy_behind_its_scaling(run, deterministic):
    directory, learner = run
    policy = load_policy(directory, deterministic=deterministic)
    norm = norm_of(directory)
    assert not torch.equal(norm.scale, torch.ones(4))
    scaled = TensorDict({"observation": (observations() - norm.loc) / norm.scale}, [64])
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with torch.no_grad(), set_exploration_type(kind):
        torch.manual_seed(1)
        expected = learner.policy(scaled)["action"].clamp(-1.0, 1.0)
    torch.manual_seed(1)
    assert torch.equal(policy(observations()), expected)


@BOTH
def test_actions_stay_inside_the_bounds_and_take_any_leading_dimensions(run, deterministic):
    policy = load_policy(run[0], deterministic=deterministic)
    actions = policy(observations(400, scale=100.0).reshape(4, 5, 20, 4))
    assert actions.shape == (4, 5, 20, 2)
    assert actions.abs().max() <= 1.0
    assert not actions.requires_grad
    assert policy(torch.zeros(4)).shape == (2,)
    assert policy(torch.zeros(0, 4)).shape == (0, 2)


def test_the_mean_repeats_and_samples_differ(run):
    mean, sampled = load_policy(run[0]), load_policy(run[0], deterministic=False)
    with set_exploration_type(ExplorationType.RANDOM):  # the choice at loading counts
        assert torch.equal(mean(observations()), mean(observations()))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        same = torch.equal(sampled(observations()), sampled(observations()))
    assert same is (mean.module.about["recipe"] == "td3_lag")


def test_it_acts_in_an_environment_without_any_transform(run):
    policy = load_policy(run[0])
    env = make_env("PointCircle", num_envs=3, seed=0, frame_skip=policy.module.about["env"]["frame_skip"])
    steps = env.rollout(10, policy)
    # Other batches are multiplied in another order.
    torch.testing.assert_close(steps["action"], policy(steps["observation"]), rtol=0, atol=1e-6)
    assert policy.module.about["cost_limit"] == [25.0]


def test_whole_numbers_and_doubles_are_observations_too(run):
    policy = load_policy(run[0])
    whole = torch.tensor([[1, 0, -1, 2]])
    assert torch.equal(policy(whole), policy(whole.double()))


def test_run_checkpoint_and_file_are_the_same_policy(runs, tmp_path):
    directory = runs["cvpo"][0]
    file = find_policy(directory)
    alone = shutil.copy(file, tmp_path / "alone.safetensors")
    expected = load_policy(directory)(observations())
    for source in (str(directory), file.parents[1], file, alone):
        assert torch.equal(load_policy(source)(observations()), expected)
    older = min((directory / "checkpoint").glob("checkpoint-*"))
    assert not torch.equal(load_policy(older)(observations()), expected)


def small_file(path, **options):
    norm = observation_norm(3)
    fit_observation_norm(norm, torch.tensor([[1.0, 50.0, -2.0], [3.0, 10.0, 2.0]]))
    policy = gaussian_policy(3, [-1.0, 0.0], torch.tensor([0.1, 4.0]), hidden_sizes=[8], **options)
    save_policy(path, policy, norm)
    return policy, norm


@pytest.mark.parametrize(
    "options",
    [
        {"activation": nn.Tanh},
        {"covariance": "diagonal", "min_std": 0.2},
        {"squash": True, "init_std": 1.0},
        {"observation_key": "o"},
    ],
)
def test_every_argument_of_the_builder_comes_back(tmp_path, options):
    policy, norm = small_file(tmp_path / "policy.safetensors", **options)
    observation = torch.randn(5, 3)
    data = TensorDict({policy.in_keys[0]: (observation - norm.loc) / norm.scale}, [5])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy(data)["action"]
    loaded = load_policy(tmp_path / "policy.safetensors")
    torch.testing.assert_close(loaded(observation), expected, rtol=0, atol=0)
    assert torch.equal(loaded.module.high, torch.tensor([0.1, 4.0]))


# Mistakes


def test_a_wrong_observation_is_refused(tmp_path):
    small_file(tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    for shape in ((), (4,), (3, 1), (5, 2)):
        with pytest.raises(
            ValueError, match=r"the observation has shape .*, but this policy takes \[..., 3\]"
        ):
            policy(torch.zeros(shape))
    for value in (float("nan"), float("inf"), 1e39):
        bad = torch.zeros(2, 3, dtype=torch.float64)
        bad[1, 2] = value
        with pytest.raises(FloatingPointError, match="the policy's observation holds 1 values of 6"):
            policy(bad)


def test_what_is_not_there_is_named(tmp_path, runs):
    with pytest.raises(FileNotFoundError, match="nowhere: no such run directory, checkpoint or file"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a run directory: it holds no config\.yaml"):
        load_policy(tmp_path)
    directory = shutil.copytree(runs["cvpo"][0], tmp_path / "run")
    for file in directory.glob(f"checkpoint/*/deployable/{POLICY_FILE}"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*deployed_policy\S* is missing"):
        load_policy(directory)
    shutil.rmtree(directory / "checkpoint")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        load_policy(directory)
    with pytest.raises(ValueError, match="device is 'gpu', must be cpu, cuda"):
        load_policy(runs["cvpo"][0], device="gpu")


@pytest.mark.parametrize("damage", ["half", "empty", "text", "zeros", "byte"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "policy.safetensors"
    small_file(path)
    content = bytearray(path.read_bytes())
    if damage == "byte":  # of the weights: PyTorch reads it without noticing
        at = content.find(load_policy(path).module.loc.numpy().tobytes())
        content[at] ^= 1
    damaged = {"half": content[: len(content) // 2], "empty": b"", "text": b"not a policy",
               "zeros": bytes(len(content)), "byte": content}[damage]  # fmt: skip
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"policy\.safetensors .*damaged"):
        load_policy(path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_file_cannot_run_code(tmp_path, write):
    document = {"format": "safe_components.policy/1", "state": Hostile(tmp_path / "proof")}
    write(document, tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        load_policy(tmp_path / "policy.safetensors")
    assert not (tmp_path / "proof").exists()


def test_the_file_of_something_else_is_refused(tmp_path):
    write_state(tmp_path / "policy.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="is not the file of a policy of this version"):
        load_policy(tmp_path / "policy.safetensors")


# Policies of one's own


def linear(observation_dim, action_low, action_high, gain=1.0):
    network = nn.Linear(observation_dim, len(action_low))
    with torch.no_grad():
        network.weight.fill_(gain)
    return TensorDictModule(network, in_keys=["observation"], out_keys=["action"])


def test_a_policy_of_ones_own_is_saved_by_its_builder(tmp_path):
    with pytest.raises(ValueError, match="decorate the function that makes it with @policy_builder"):
        save_policy(tmp_path / "policy.safetensors", linear(3, [-1.0], [1.0]), observation_norm(3))
    make = policy_builder(linear)
    save_policy(tmp_path / "policy.safetensors", make(3, [-1.0], [1.0], gain=0.5), observation_norm(3))
    observation = torch.tensor([0.1, 0.2, 0.3])
    expected = make(3, [-1.0], [1.0], gain=0.5)
    loaded = load_policy(tmp_path / "policy.safetensors")
    assert loaded.module.policy.module.weight.tolist() == expected.module.weight.tolist()
    assert loaded(100 * observation).item() == 1.0


def test_a_builder_must_be_known_and_must_take_sizes_and_bounds(tmp_path):
    def other(observation_dim, action_low, action_high):
        return linear(observation_dim, action_low, action_high)

    save_policy(tmp_path / "policy.safetensors", policy_builder(other)(3, [-1.0], [1.0]), observation_norm(3))
    del registry._BUILDERS["other"]
    with pytest.raises(ValueError, match="no policy builder 'other' is registered"):
        load_policy(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match="policy builder <lambda> must take action_low, action_high"):
        policy_builder(lambda observation_dim: None)
    with pytest.raises(ValueError, match="another policy builder has the name 'gaussian_policy'"):
        policy_builder(same_name())
    with pytest.raises(ValueError, match=r"activation=<class .*> cannot be saved with the policy"):
        deterministic_policy(3, [-1.0], [1.0], activation=type("Own", (nn.ReLU,), {}))


def same_name():
    def gaussian_policy(observation_dim, action_low, action_high):
        return None

    return gaussian_policy


def test_a_run_says_at_once_that_its_policy_cannot_be_saved_alone(tmp_path, monkeypatch):
    plain = lambda config, task: gaussian_policy.__wrapped__(task.observation_dim, **task.bounds)  # noqa: E731
    monkeypatch.setattr(ppo_lag, "make_policy", plain)
    with pytest.warns(UserWarning, match=r"checkpoints will hold no policy that"):
        ppo_lag.main(small(ppo_lag, "--run-dir", tmp_path / "run", "--total-frames", 600))
    with pytest.raises(
        FileNotFoundError, match=r"holds no deployed_policy.*: pass the policy and the scaling"
    ):
        load_policy(tmp_path / "run")


# Exports


def exported(runs, name, suffix, tmp_path, **options):
    policy = load_policy(runs[name][0], **options)
    path = tmp_path / f"policy{suffix}"
    export_policy(policy, path)
    return policy, path


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # PyTorch 2.11, loading
@pytest.mark.parametrize("name", RECIPES)
def test_torch_export_gives_the_same_actions(runs, name, tmp_path):
    policy, path = exported(runs, name, ".pt2", tmp_path)
    program = torch.export.load(path).module()
    for n in (1, 2, 64):
        torch.testing.assert_close(program(observations(n)), policy(observations(n)), rtol=0, atol=1e-6)


def test_an_exported_policy_may_sample(runs, tmp_path):
    policy, path = exported(runs, "cvpo", ".pt2", tmp_path, deterministic=False)
    program = torch.export.load(path).module()
    torch.manual_seed(0)
    expected = policy(observations())
    torch.manual_seed(0)
    torch.testing.assert_close(program(observations()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_onnx_runtime_gives_the_same_actions(runs, name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="export to ONNX needs safe_components[export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs safe_components[export]")
    policy, path = exported(runs, name, ".onnx", tmp_path)
    session = onnxruntime.InferenceSession(path)
    for n in (1, 2, 64):
        (actions,) = session.run(["action"], {"observation": observations(n).numpy()})
        # The engines round differently, by a few units in the last place of numbers up to 1.
        torch.testing.assert_close(torch.from_numpy(actions), policy(observations(n)), rtol=0, atol=2e-6)


def test_an_unknown_format_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"policy\.h5 must end in \.pt2 \(torch\.export\) or \.onnx"):
        export_policy(load_policy(runs["cvpo"][0]), tmp_path / "policy.h5")


def test_a_policy_whose_state_holds_more_than_tensors_is_refused(tmp_path):
    policy = gaussian_policy(4, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    policy.state_dict = lambda: {"weight": torch.zeros(1), "recipe": "more"}
    with pytest.raises(ValueError, match=r"^policy\.recipe of the policy's state are not tensors"):
        save_policy(tmp_path / POLICY_FILE, policy, observation_norm(4))


def test_tensors_of_another_policy_are_refused(tmp_path):
    """The checksum is right: the file was written so."""
    policy = gaussian_policy(4, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    other = gaussian_policy(4, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(9,))
    policy.state_dict = other.state_dict
    save_policy(tmp_path / POLICY_FILE, policy, observation_norm(4))
    with pytest.raises(ValueError, match=r"does not fit its description: .*size mismatch"):
        load_policy(tmp_path / POLICY_FILE)


def test_export_to_onnx_names_the_package_that_is_missing(runs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'safe_components\[export\]'"):
        export_policy(load_policy(runs["cvpo"][0]), tmp_path / "policy.onnx")


def test_the_command_exports_and_never_overwrites(runs, tmp_path, capsys):
    directory, file = str(runs["cvpo"][0]), tmp_path / "policy.pt2"
    cli.main(["export", directory, str(file)])
    assert f"exported {directory} to {file}" in capsys.readouterr().out
    program = torch.export.load(file).module()
    torch.testing.assert_close(program(observations()), load_policy(directory)(observations()))
    with pytest.raises(SystemExit, match=r"^error: \S*policy\.pt2 exists and is not overwritten"):
        cli.main(["export", directory, str(file)])
    cli.main(["export", directory, str(tmp_path / "sampled.pt2"), "--sampled"])
    sampled = torch.export.load(tmp_path / "sampled.pt2").module()
    assert not torch.equal(sampled(observations()), sampled(observations()))
    with pytest.raises(SystemExit, match=r"^error: .*no such run directory"):
        cli.main(["export", str(tmp_path / "nothing"), str(tmp_path / "other.pt2")])
