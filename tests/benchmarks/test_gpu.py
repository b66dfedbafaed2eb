"""The GPU benchmark: its code on the CPU at tiny sizes, its figures, and the input that it refuses."""

import json
import re
from pathlib import Path

import gpu
import gpu_parts
import pytest
import torch
from learner_gemm import GemmLimit, Sizes

from safe_components.training import parse_config

ROOT = Path(__file__).parents[2]

TINY = (
    "--device cpu --rows 1 --states 8 --particles 4 --m-iterations 2 --hidden-sizes 16 16 --observation 6 "
    "--transitions 500 --blocks 2 --updates 1"
).split()
LOOP = (
    "--env.frame-skip 1 --env.max-episode-steps 50 --collect.frames-per-batch 200 --log-interval 400 "
    "--replay.size 2000 --replay.batch-size 16 --estep.num-particles 4 --policy.hidden-sizes 16 16 "
    "--critics.hidden-sizes 16 16 --collect.updates-per-frame 0.01 --critics.warmup-updates 2 "
    "--collect.warmup-frames 200"
)


@pytest.fixture(autouse=True)
def _threads():
    """The benchmark sets PyTorch's threads; give the other tests theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_everything_runs_on_the_cpu(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    training = ["--copies", "4", "--frames", "1000", "--flags", LOOP]
    assert gpu.main([*TINY, *training, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| eager |" in printed
    assert "### The whole loop" in printed
    figures = json.loads(file.read_text())
    (row,) = figures["rows"]
    assert row["name"] == "1. given sizes"
    eager = row["executions"]["eager"]
    assert eager["times_published"] is None  # that figure is for other sizes
    assert eager["seconds"] > row["products_seconds"] > 0.0
    assert eager["launches"] > 100
    bound = max(row["products_seconds"], eager["launches_seconds"])
    assert eager["share_of_limit"] == pytest.approx(bound / eager["seconds"])
    assert figures["loop"]["frames_per_second"] == pytest.approx(1000 / figures["loop"]["seconds"])
    assert figures["loop"]["seconds_to_good"] is None


def test_starts_are_counted_and_timed():
    numbers, device = torch.zeros(4), torch.device("cpu")
    assert gpu.launches(lambda: [numbers.neg_() for _ in range(7)], device) == 7
    cost = gpu.launch_seconds(device, number=10)
    assert min(cost.values()) > 0.0
    assert max(cost.values()) < 1e-2


def test_the_products_alone_are_those_timed_by_phase():
    limit = GemmLimit(Sizes(states=4, particles=4, m_iterations=2, hidden_sizes=(8, 8), observation=5), 1)
    executed = []
    limit._calls = [(product, lambda p=product: executed.append(p)) for product, _ in limit._calls]
    limit.once()
    alone, executed[:] = executed.copy(), []
    limit.run()
    assert alone == executed
    assert len(alone) == sum(product.times for product in limit.products)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_cuda_it_says_so(capsys):
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert "finds no CUDA device here" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(capsys):
    flags = [flag for flag in TINY if flag not in ("--device", "cpu")]
    assert gpu.main([*flags, "--executions", "eager", "graph", "--no-loop"]) == 0
    assert "| graph |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--updates 0", "--updates 0 must be at least 1"),
        ("--transitions 10 --states 20", "--transitions 10 must be at least --states 20"),
        ("--device cpu --executions graph", "a graph is for CUDA"),
    ],
)
def test_bad_input_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        gpu.parse(flags.split())
    assert message in capsys.readouterr().err


SCRIPT = (ROOT / "benchmarks" / "gpu_run.sh").read_text()


@pytest.mark.parametrize("flags", re.findall(r"(?:loop|simulator)=\(([^)]*)\)", SCRIPT))
def test_the_trainings_of_the_script_are_ones_of_the_recipe(flags):
    config = parse_config(gpu.cvpo.Config, flags.split())
    assert config.run.total_frames >= 6000


def test_the_tests_of_the_script_exist():
    (where,) = re.findall(r"where=\(([^)]*)\)", SCRIPT)
    assert [path for path in where.split() if not (ROOT / path).exists()] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of lies in PyTorch
def test_the_parts_of_an_update_are_measured(monkeypatch):
    """On the CPU and at small sizes, which only shows that the names are right."""
    monkeypatch.setattr(gpu_parts, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_parts, "TRANSITIONS", 500)
    monkeypatch.setattr(gpu_parts, "milliseconds", lambda call, *_: call() is None)
    sizes = Sizes(16, 4, 2, (16, 16), observation=6)
    found = gpu_parts.parts(sizes, {})
    assert [*found] == ["critics", "particles", "E-step", "M-step", "reference policy", "samples"]
    assert "error" not in str(found)
    assert gpu_parts.mstep(5, 2)["tensors"]["error"] < 1e-5
    assert gpu_parts.estep(8, 4, 1, 0.45)["fixed_weight_error"] < 1e-5
    assert gpu_parts.graphed(sizes, {}, None)["waits"] == {}
