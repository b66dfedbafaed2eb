"""An update eagerly, compiled and as a graph: the same numbers, nothing read by the host, clear refusals."""

import functools
import gc
import math
from contextlib import nullcontext
from unittest import mock

import gymnasium
import pytest
import torch
from learner_update import SpacesOnly, random_steps
from recorded_graph import RecordedModule, Recording, tensors
from tensordict import TensorDict

import cvpo
from plumbing import Task, execution
from plumbing.execution import GraphedUpdate
from safe_components import keys
from safe_components.estep import EStepProjector, NewtonDualSolver
from safe_components.training import EnvConfig, RunConfig

SIZES = {"batch_size": 32, "num_particles": 4, "m_iterations": 3, "hidden_sizes": (16, 16)}
SETTINGS = [
    {},
    {"infeasible": "recover", "covariance": "diagonal"},
    {"trust_region": "soft", "multiplier": "pid", "n_step": 1},
    {"trust_region": "none", "multiplier": "none", "cost_limit": (4.0,)},
    {"reference": "copy", "estep_critics": "online", "trust_region": "retract"},
    {"estep_solver": "adam", "cost_critics": 2, "cost_aggregate": "conservative"},
]
NAMES = ["-".join(map(str, settings.values())) or "defaults" for settings in SETTINGS]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Parts:
    """What ``cvpo.main`` hands to its training loop, which is left out, and what a checkpoint holds."""

    def __init__(self, directory, monkeypatch, *, run=None, fill=True, **settings):
        if "SpacesOnly-v0" not in gymnasium.registry:
            entry = functools.partial(SpacesOnly, 6, 2)
            gymnasium.register("SpacesOnly-v0", entry, max_episode_steps=500)
        config = {"cost_limit": (200.0,), "buffer_size": 500, "estep_window": 400, "loggers": ()} | SIZES
        env = EnvConfig(id="SpacesOnly-v0", num_envs=1, frame_skip=1)
        self.config = cvpo.Config(
            env=env, run_dir=directory, progress=False, eval_episodes=1, **(config | settings)
        )
        with monkeypatch.context() as patch:
            patch.setattr(cvpo, "train_off_policy", self._take)
            patch.setattr(cvpo.Run, "save", lambda run: None)
            if run is not None:
                patch.setattr(cvpo, "execute", lambda config, *optimizers: lambda f: run(f, optimizers))
            cvpo.main(self.config)
        if fill:
            self.store(random_steps(500, 6, 2).unsqueeze(0))
            for _ in range(5):
                self.warm_up()

    def _take(self, run, task, policy, **parts):
        vars(self).update(parts, run=run)

    def state(self):
        """Every number that an update may change."""
        parts = self.run._checkpoint.components
        found = {}
        for name in ("mstep", "estep", "critic_td"):
            found |= {f"{name}.{key}": value for key, value in parts[name].state_dict().items()}
        for name in ("policy_optim", "critic_optim"):
            for index, moments in parts[name].state_dict()["state"].items():
                found |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
        return {key: value.clone() for key, value in found.items() if isinstance(value, torch.Tensor)}


def several(parts, count=6):
    """Updates with all that happens between two batches of frames in the midst; metrics and state."""
    torch.manual_seed(1)
    metrics = []
    for index in range(count):
        if index == count // 2:
            parts.run.advance(30_000)
            parts.collected(torch.tensor([[700.0], [500.0]]))  # over the limit, by then 440 at most
        metrics.append({key: value.clone() for key, value in parts.update().items()})
    return metrics, parts.state()


def assert_same(ours, theirs, **tolerance):
    (metrics, state), (expected_metrics, expected_state) = ours, theirs
    for now, then in zip(metrics, expected_metrics, strict=True):
        assert now.keys() == then.keys()
        for name, value in then.items():
            torch.testing.assert_close(
                now[name].double(), value.double(), **tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        torch.testing.assert_close(
            state[name], value, equal_nan=True, **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_stand_in_repeats_operations_and_no_python():
    total, calls = torch.zeros(()), []

    def function(x):
        calls.append(1)
        total.add_(x.sum() * len(calls))
        return total * 2

    module = RecordedModule(function)
    answers = [float(module(torch.full((2,), float(value)))) for value in (1, 1, 3, 5)]
    # 2 * 1 and 2 * 2 are added while Python runs; from then on len(calls) stays 2.
    assert answers == [4.0, 12.0, 36.0, 76.0]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda x: x.select(-1, 0).fill_(2.0), None),
        (lambda x: torch.full_like(x, torch.inf) + x.new_zeros(()) + torch.where(x > 0, 0.0, x), None),
        (lambda x: x[..., 0].copy_(x[..., 1]), None),
        (lambda x: x.__setitem__((..., 0), 2.0), r"aten\.lift_fresh.*copies a number from the host"),
        (lambda x: x.__setitem__((0, 0), torch.inf), "copies a number from the host"),
        (lambda x: x.__setitem__(x > 0, 2.0), "copies a number from the host"),
        (lambda x: x * torch.tensor([1.0, 2.0]), "copies a number from the host"),
        (lambda x: x[[0, 1]], "copies a number from the host"),
        (lambda x: x * float(x[0, 0]), r"aten\._local_scalar_dense.*makes the host wait"),
    ],
)
def test_the_stand_in_refuses_what_a_graph_cannot_record(operation, said):
    # Which of them a real graph refuses is asked below.
    with nullcontext() if said is None else pytest.raises(RuntimeError, match=said), Recording():
        operation(torch.ones(3, 2))


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_repeating_the_recorded_operations_is_training(settings, tmp_path, monkeypatch):
    settings = settings | {"limit_start": tuple(4 * x for x in settings.get("cost_limit", (200.0,)))}
    plain = Parts(tmp_path / "a", monkeypatch, run=lambda f, _: f, execution="graph", **settings)
    expected = several(plain)
    with mock.patch.object(execution, "CudaGraphModule", RecordedModule):
        graphed = Parts(tmp_path / "b", monkeypatch, run=GraphedUpdate, execution="graph", **settings)
        found = several(graphed)
    assert_same(found, expected, rtol=0.0, atol=0.0)


def test_the_mode_that_does_not_wait_gives_the_numbers_of_the_one_that_does(tmp_path, monkeypatch):
    waiting = several(Parts(tmp_path / "a", monkeypatch))
    other = several(Parts(tmp_path / "b", monkeypatch, run=lambda f, _: f, execution="graph"))
    # The dual is solved to 1e-9 by both; float32 carries the difference on.
    assert_same(other, waiting, rtol=1e-4, atol=1e-5)


@pytest.fixture
def meta(monkeypatch):
    """The recipe on PyTorch's device without numbers: asking it for one raises."""
    # Its Adam has no kernel there, and TorchRL asks for storages.
    steps = lambda params, lr=1e-3, fused=None: torch.optim.SGD(params, lr, foreach=True)  # noqa: E731
    monkeypatch.setattr(torch.optim, "Adam", steps)
    monkeypatch.setattr(torch.Tensor, "is_set_to", lambda *_: False)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_an_update_reads_no_number_and_touches_no_other_device(settings, meta, tmp_path, monkeypatch):
    caught = []
    kept = lambda f, _: caught.append(f) or f  # noqa: E731
    Parts(tmp_path, monkeypatch, run=kept, fill=False, device="meta", execution="graph", **settings)
    batch = random_steps(32, 6, 2).set("steps_to_next_obs", torch.ones(32, dtype=torch.long)).to("meta")
    recording = Recording()
    with recording:
        values = caught[0](batch, batch.select(keys.OBSERVATION))
    assert len(recording.operations) > 500
    for func, args, kwargs, out in recording.operations:
        devices = {tensor.device.type for tensor in tensors((args, kwargs, out))}
        assert devices <= {"meta"}, f"{func} on {devices}"
    assert {value.device.type for value in values.values()} == {"meta"}


def test_reading_a_number_would_have_been_noticed(meta, tmp_path, monkeypatch):
    caught = []
    kept = lambda f, _: caught.append(f) or f  # noqa: E731
    Parts(tmp_path, monkeypatch, run=kept, fill=False, device="meta", execution="eager", n_step=1)
    batch = random_steps(32, 6, 2).to("meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        caught[0](batch, batch.select(keys.OBSERVATION))


def test_no_gradient_graph_outlives_an_update(tmp_path, monkeypatch):
    # A node that accumulates a gradient knows its stream: one that lived on would draw it into a recording.
    parts = Parts(tmp_path, monkeypatch, run=lambda f, _: f, execution="graph")

    def node(parameter):
        return parameter.expand_as(parameter).grad_fn.next_functions[0][0]

    parameters = [*parts.run._checkpoint.components["mstep"].parameters()]
    parts.update()
    gc.collect()
    for parameter in parameters:
        node(parameter).metadata["seen"] = True
    assert not any("seen" in node(parameter).metadata for parameter in parameters)
    held = [node(parameter) for parameter in parameters]
    held[0].metadata["seen"] = True
    assert "seen" in node(parameters[0]).metadata  # so it would have been noticed


def test_newton_needs_no_more_evaluations_than_a_graph_gives_it():
    """Cold and warm, limits that bind or cannot be met, estimates that drift by a tenth of their spread."""
    iterations = cvpo.Config(execution="graph").newton_iterations
    worst = 0.0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        m, normal = 1 + seed % 3, functools.partial(torch.randn, generator=generator)
        q_reward, q_cost = 5 * normal(60, 1) + 2 * normal(60, 16), normal(60, 16, m).abs()
        limits = (q_cost.mean((0, 1)) + 0.3 * normal(m) - 0.2).clamp_min(0.0)
        solver = NewtonDualSolver(fixed_iterations=iterations, lam_max=1.0 if seed % 2 else None)
        how = "clip" if seed % 2 else "recover"
        estep = EStepProjector(0.1, limits, solver, how, check_finite=False)
        for _ in range(5):
            estimates = {
                "q_reward": q_reward + 0.2 * normal(60, 16),
                "q_cost": q_cost + 0.06 * normal(60, 16, m),
            }
            estep(TensorDict(particles=TensorDict(estimates, [60]), batch_size=[60]))
            worst = max(worst, float(estep.solution.residual))
    assert worst <= 1e-6


def test_a_graph_takes_batches_of_one_size(tmp_path):
    with mock.patch.object(execution, "CudaGraphModule", RecordedModule):
        graphed = GraphedUpdate(lambda batch: {"mean": batch["x"].mean(), "rows": batch["x"].sum(1)}, [])
    for value in (1.0, 2.0, 3.0):
        found = graphed(TensorDict(x=torch.full((3, 2), value), batch_size=[3]))
        assert found["mean"].item() == value
        assert found["rows"].tolist() == [2 * value] * 3
    with pytest.raises(ValueError, match=r"sizes \[\[4\]\] do not fit the recorded graph.*\[\[3\]\]"):
        graphed(TensorDict(x=torch.ones(4, 2), batch_size=[4]))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--execution", "graph"],
            "execution is graph, which is for CUDA, and device is cpu: use --device cuda",
        ),
        (["--execution", "compile", "--estep-solver", "slsqp"], "use --estep-solver newton"),
        (["--device", "cuda:99"], "finds . CUDA devices here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, said, tmp_path):
    common = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "run"), "--no-progress"]
    with pytest.raises(SystemExit, match=said) as stop:
        cvpo.launch(cvpo.main, cvpo.Config, [*common, *flags])
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # what the compiler warns of lies in PyTorch and TensorDict
def test_compiled_is_the_same(tmp_path, monkeypatch):
    """The tracing and its graphs, run without the code generator; that one is timed by benchmarks/gpu.py."""
    monkeypatch.setattr(execution, "_NEWTON_ITERATIONS", 3)  # each is traced anew
    settings = {"m_iterations": 1}
    plain = Parts(tmp_path / "a", monkeypatch, run=lambda f, _: f, execution="compile", **settings)
    expected = several(plain, 3)
    compiler = functools.partial(torch.compile, backend="aot_eager")
    compiled = Parts(
        tmp_path / "b", monkeypatch, run=lambda f, _: compiler(f), execution="compile", **settings
    )
    found = several(compiled, 3)
    assert_same(found, expected, rtol=1e-4, atol=1e-5)


def test_point_circle_lives_with_the_learner():
    circle = EnvConfig(id="PointCircle", num_envs=4)
    assert Task(RunConfig(env=circle)).env_device.type == "cpu"
    if torch.cuda.is_available():
        task = Task(RunConfig(env=circle, device="cuda"))
        steps = task.warm_up(80, seed=0)
        assert {leaf.device.type for leaf in steps.values(True, True)} == {"cuda"}
        assert task.norm.loc.device.type == "cuda"
        shared = EnvConfig(id="PointCircle", num_envs=4, num_workers=2)
        assert Task(RunConfig(env=shared, device="cuda")).env_device.type == "cpu"


@needs_cuda
@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_a_cuda_graph_is_the_eager_update(settings, tmp_path, monkeypatch):
    settings = settings | {"device": "cuda", "execution": "graph"}
    expected = several(Parts(tmp_path / "a", monkeypatch, run=lambda f, _: f, **settings))
    found = several(Parts(tmp_path / "b", monkeypatch, **settings))
    # The same kernels, except where a library chooses by what is aligned: float32 over six updates.
    assert_same(found, expected, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("execution", ["compile", "graph"])
def test_an_update_on_cuda_never_waits(execution, tmp_path, monkeypatch):
    kept = []
    run = lambda f, _: kept.append(f) or f  # noqa: E731
    parts = Parts(tmp_path, monkeypatch, run=run, device="cuda", execution=execution)
    several(parts)
    batch = parts.run._checkpoint.components["buffer"].sample()
    states = batch.select(keys.OBSERVATION)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = kept[0](batch, states)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value.double().mean().item()) for value in values.values())


@needs_cuda
def test_a_run_as_a_graph_on_cuda(tmp_path):
    flags = "--env.id PointCircle --env.num-envs 64 --total-frames 20000 --log-interval 10000 --no-progress"
    where = ["--device", "cuda", "--execution", "graph", "--run-dir", str(tmp_path / "run")]
    cvpo.launch(cvpo.main, cvpo.Config, [*flags.split(), *where])
    cvpo.launch(cvpo.main, cvpo.Config, ["--resume", str(tmp_path / "run"), "--total-frames", "30000"])
