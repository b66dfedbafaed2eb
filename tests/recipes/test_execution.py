"""An update eagerly, compiled and as a graph: the same numbers, nothing read by the host, clear refusals."""

import dataclasses
import functools
import gc
import math
from contextlib import nullcontext

import pytest
import torch
from learner_update import RandomTask
from recorded_graph import Recording, graphs_on_the_cpu, tensors
from small_runs import small
from tensordict import TensorDict

import cvpo
from safe_components import keys
from safe_components.estep import EStepProjector, NewtonDualSolver
from safe_components.training import (
    EnvConfig,
    GraphedUpdate,
    RecipeConfig,
    Replay,
    RunConfig,
    Task,
)
from safe_components.training.options import estep as estep_options

SIZES = (
    "--env.num-envs 1 --cost-limit 200 --replay.size 500 --replay.window 400 --estep.num-particles 4 "
    "--mstep.iterations 3"
).split()
SETTINGS = [
    "",
    "--multiplier dual --multiplier.infeasible recover --policy.covariance full --reference polyak",
    "--trust-region soft --multiplier pid --critics.n-step 1",
    "--trust-region none --multiplier none --cost-limit 4",
    "--multiplier dual --estep.critics online --trust-region retract",
    "--multiplier dual --estep.solver adam --critics.cost-members 2 --critics.cost-aggregate conservative",
]
NAMES = [settings.replace(" --", "-").removeprefix("--") or "defaults" for settings in SETTINGS]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def random_batch(number):
    return RandomTask(6, 2, torch.device("cpu")).steps(number)[0]


class Parts:
    """The recipe's learner on a task of given sizes, its buffer full of random transitions."""

    def __init__(self, settings="", *flags, run=lambda update, _: update, fill=True, device=None):
        self.config = small(cvpo, *SIZES, *settings.split(), *flags)
        if device is not None:  # PyTorch's meta device, which no user can ask for
            run_settings = dataclasses.replace(self.config.run, device=device)
            self.config = dataclasses.replace(self.config, run=run_settings)
        torch.manual_seed(self.config.run.seed)
        task = RandomTask(6, 2, torch.device(self.config.run.device))
        self.learner = cvpo.CVPO(self.config, task)
        self.run = run(self.learner.update, list(self.learner.optimizers.values()))
        if fill:
            self.replay = Replay.of(self.config, window=self.config.replay.window)
            self.replay.extend(task.steps(500))
            for _ in range(5):
                self.learner.critics.update(self.replay.transitions())

    def update(self):
        return self.run(*self.replay.sample())

    def state(self):
        """Every number that an update may change."""
        found, left = {}, [("", self.learner.state_dict())]
        while left:
            prefix, state = left.pop()
            for key, value in state.items():
                if isinstance(value, dict):
                    left.append((f"{prefix}{key}.", value))
                elif isinstance(value, torch.Tensor):
                    found[f"{prefix}{key}"] = value.clone()
        return found


def several(parts, count=6):
    """Updates with all that happens between two batches of frames in the midst; metrics and state."""
    torch.manual_seed(1)
    metrics = []
    for index in range(count):
        if index == count // 2:
            # Over the limit, by then 440 at most.
            costly = RandomTask(6, 2, torch.device("cpu")).steps(50)
            costly["next", "cost"].fill_(10.0)
            parts.learner.observe(costly, torch.tensor([[700.0], [500.0]]), 30_000)
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


GRAPH = ("--execution.mode", "graph")


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_repeating_the_recorded_operations_is_training(settings):
    start = ("--budget.start", "16" if "--cost-limit 4" in settings else "800")
    expected = several(Parts(settings, *GRAPH, *start))
    with graphs_on_the_cpu():
        found = several(Parts(settings, *GRAPH, *start, run=GraphedUpdate))
    assert_same(found, expected, rtol=0.0, atol=0.0)


def test_the_mode_that_does_not_wait_gives_the_numbers_of_the_one_that_does():
    # The dual is solved to 1e-9 by both; float32 carries the difference on.
    assert_same(several(Parts("", *GRAPH)), several(Parts()), rtol=1e-4, atol=1e-5)


class GradientSteps(torch.optim.Optimizer):
    """Gradient descent whose step size may be a tensor, for a device on which Adam has no kernel."""

    def __init__(self, params, lr=1e-3, eps=0.0, fused=None):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@pytest.fixture
def meta(monkeypatch):
    """PyTorch's device without numbers: asking it for one raises."""
    monkeypatch.setattr(torch.optim, "Adam", GradientSteps)
    # TorchRL asks for storages.
    monkeypatch.setattr(torch.Tensor, "is_set_to", lambda *_: False)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_an_update_reads_no_number_and_touches_no_other_device(settings, meta):
    parts = Parts(settings, *GRAPH, fill=False, device="meta")
    batch = random_batch(32).set("steps_to_next_obs", torch.ones(32, dtype=torch.long)).to("meta")
    recording = Recording()
    with recording:
        values = parts.run(batch, batch.select(keys.OBSERVATION))
    assert len(recording.operations) > 500
    for func, args, kwargs, out in recording.operations:
        devices = {tensor.device.type for tensor in tensors((args, kwargs, out))}
        assert devices <= {"meta"}, f"{func} on {devices}"
    assert {value.device.type for value in values.values()} == {"meta"}


def test_reading_a_number_would_have_been_noticed(meta):
    parts = Parts("", "--critics.n-step", 1, fill=False, device="meta")
    batch = random_batch(32).to("meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        parts.run(batch, batch.select(keys.OBSERVATION))


def test_no_gradient_graph_outlives_an_update():
    # A node that accumulates a gradient knows its stream: one that lived on would draw it into a recording.
    parts = Parts("", *GRAPH)

    def node(parameter):
        return parameter.expand_as(parameter).grad_fn.next_functions[0][0]

    parameters = [*parts.learner.mstep.parameters()]
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
    worst = 0.0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        m, normal = 1 + seed % 3, functools.partial(torch.randn, generator=generator)
        q_reward, q_cost = 5 * normal(60, 1) + 2 * normal(60, 16), normal(60, 16, m).abs()
        limits = (q_cost.mean((0, 1)) + 0.3 * normal(m) - 0.2).clamp_min(0.0)
        solver = NewtonDualSolver(
            fixed_iterations=estep_options.FIXED_ITERATIONS, lam_max=1.0 if seed % 2 else None
        )
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


def test_a_graph_takes_batches_of_one_size():
    with graphs_on_the_cpu():
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
        (["--execution.mode", "graph"], "graph, which needs CUDA, but device is cpu: use --device cuda"),
        (["--execution.mode", "compile", "--estep.solver", "slsqp"], "SLSQPDualSolver computes on the host"),
        (["--device", "cuda:99"], "finds . CUDA devices here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, said, tmp_path):
    common = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "run"), "--no-progress"]
    with pytest.raises(SystemExit, match=said) as stop:
        cvpo.launch(cvpo.main, cvpo.Config, [*common, *flags])
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of lies in PyTorch and TensorDict
def test_compiled_is_the_same(monkeypatch):
    """The tracing and its graphs, run without the code generator; that one is timed by benchmarks/gpu.py."""
    monkeypatch.setattr(estep_options, "FIXED_ITERATIONS", 3)  # each is traced anew
    flags = ("--execution.mode", "compile", "--mstep.iterations", 1)
    expected = several(Parts("", *flags), 3)
    compiler = functools.partial(torch.compile, backend="aot_eager")
    found = several(Parts("", *flags, run=lambda update, _: compiler(update)), 3)
    assert_same(found, expected, rtol=1e-4, atol=1e-5)


def test_point_circle_lives_with_the_learner():
    circle = EnvConfig(id="PointCircle", num_envs=4)
    assert Task(RecipeConfig(env=circle)).env_device.type == "cpu"
    if torch.cuda.is_available():
        cuda = RunConfig(device="cuda")
        task = Task(RecipeConfig(env=circle, run=cuda))
        steps = task.warm_up(80, seed=0)
        assert {leaf.device.type for leaf in steps.values(True, True)} == {"cuda"}
        assert task.norm.loc.device.type == "cuda"
        shared = EnvConfig(id="PointCircle", num_envs=4, num_workers=2)
        assert Task(RecipeConfig(env=shared, run=cuda)).env_device.type == "cpu"


@needs_cuda
@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_a_cuda_graph_is_the_eager_update(settings):
    cuda = (*GRAPH, "--device", "cuda")
    expected = several(Parts(settings, *cuda))
    found = several(Parts(settings, *cuda, run=GraphedUpdate))
    # The same kernels, except where a library chooses by what is aligned: float32 over six updates.
    assert_same(found, expected, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("mode", ["compile", "graph"])
def test_an_update_on_cuda_never_waits(mode):
    parts = Parts("", "--device", "cuda", "--execution.mode", mode)
    several(parts)
    batches = parts.replay.sample()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = parts.run(*batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value.double().mean().item()) for value in values.values())


@needs_cuda
def test_a_run_as_a_graph_on_cuda(tmp_path):
    flags = "--env.id PointCircle --env.num-envs 64 --total-frames 20000 --log-interval 10000 --no-progress"
    where = ["--device", "cuda", "--execution.mode", "graph", "--run-dir", str(tmp_path / "run")]
    cvpo.launch(cvpo.main, cvpo.Config, [*flags.split(), *where])
    cvpo.launch(cvpo.main, cvpo.Config, ["--resume", str(tmp_path / "run"), "--total-frames", "30000"])
