"""Mutation testing: which mistakes in the mathematics would the tests notice?

    make mutation                                   # or: python benchmarks/mutation.py --share 0.25
    make mutation ARGS="--only estep/kkt --share 1"

Every mutant of `mutants.py` in the packages below is tested with the tests that run the changed line, fastest
first, until one fails. A mutant that fails no test survives: either a test is missing, or the change makes no
difference.

A first pass notes which tests run which lines (coverage.py). Then one process that has PyTorch loaded forks a
child per mutant. The child imports the mutant in the module's place before it collects the tests. Results are
appended to a file of JSON lines, from which an interrupted run continues. A changed module is tested again.
The sample of ``--share`` depends on the mutants and on ``--seed`` alone.

Not mutated: ``_newton_triton.py`` and ``_fused_triton.py``, whose tests need Triton and take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mutants import Mutant, mutants, mutated

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ops", "estep", "mstep", "lagrangian")
MODULES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / "safe_components" / package).glob("*.py"))
    if path.name != "__init__.py" and not path.name.endswith("_triton.py")
]
LAWS = ("dual_solvers", "newton_twins", "properties", "trust_regions", "multipliers", "losses")
TESTS = [
    *(path for package in PACKAGES for path in sorted((ROOT / "tests" / package).glob("test_*.py"))),
    *(ROOT / "tests" / "laws" / f"test_{name}.py" for name in LAWS),
    *MODULES,  # their examples
]
OPTIONS = [
    "--assert=plain",
    *("-q", "-x", "-p", "no:cacheprovider"),
    "--noconftest",  # its fixtures load the recipes
    *("-o", "addopts=--doctest-modules -m 'not slow'"),
]
Lines = dict[str, dict[str, list[str]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Test a sample of the mutants and print the share that was killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.25, help="share of the mutants to test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--only", default="", help="part of the paths of the modules to mutate")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="CPU time of the tests tried on one mutant"
    )
    parser.add_argument("--again", action="store_true", help="test known survivors again")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "mutation", help="directory of the results"
    )
    args = parser.parse_args(arguments)

    os.chdir(ROOT)
    args.out.mkdir(parents=True, exist_ok=True)
    _preload()
    tests = _measure(args.out / "tests.json")
    results = _read(args.out / "results.jsonl")
    sample = list(_sample(args.share, args.seed, args.only))
    with (args.out / "results.jsonl").open("a") as file:
        for i, (path, mutant, key) in enumerate(sample):
            known = results.get(key)
            if known and (known["killed"] or not args.again):
                continue
            result = _test(path, mutant, tests, args.seconds)
            results[key] = {"key": key, "module": _name(path), **mutant._asdict(), **result}
            print(json.dumps(results[key], ensure_ascii=False), file=file, flush=True)
            print(f"{i + 1}/{len(sample)}", _line(results[key]), flush=True)
    _report([results[key] for *_, key in sample])


def _sample(share: float, seed: int, only: str) -> Iterator[tuple[Path, Mutant, str]]:
    """Yield a share of the mutants, each with a key that changes with its module."""
    for path in MODULES:
        if only not in _name(path):
            continue
        source, seen = path.read_text(), defaultdict[str, int](int)
        for mutant in mutants(source):
            place = f"{seed} {_name(path)} {mutant.operator} {mutant.before} {mutant.after}"
            seen[place] += 1
            draw = hashlib.sha256(f"{place} {seen[place]}".encode()).digest()
            if int.from_bytes(draw[:8], "big") < share * 2**64:
                yield path, mutant, f"{_name(path)}:{mutant.number}:{_version(path)}"


def _test(path: Path, mutant: Mutant, tests: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run the tests that reach the mutant, fastest first; say which one failed."""
    chosen, spent = [], 0.0
    for test in sorted(_reaching(path, mutant, tests["lines"]), key=tests["seconds"].__getitem__):
        spent += tests["seconds"][test]
        if chosen and spent > seconds:
            break
        chosen.append(test)
    if not chosen:
        return {"killed": False, "by": "no test reaches it", "seconds": seconds}
    tree = mutated(path.read_text(), mutant.number)

    def run(report: Callable[[str], None]) -> int:
        sys.meta_path.insert(0, _Replaced(path, tree))
        # The tests of the same package first: to collect the others takes longer than to run them.
        near = [test for test in chosen if test.startswith((f"tests/{path.parent.name}/", _name(path)))]
        far = [test for test in chosen if test not in near]
        return _pytest(near, report) or _pytest(far, report)

    # A mutant may loop for ever, or wait.
    code, words = _forked(run, limit=20 + 4 * spent)
    killed = code != 0
    by = words.splitlines()[0] if words else {None: "time"}.get(code, "import")
    return {"killed": killed, "by": by if killed else "", "seconds": seconds, "tests": len(chosen)}


def _reaching(path: Path, mutant: Mutant, lines: Lines) -> set[str]:
    """The tests that run the changed statement; for a function's head, those that run the function."""
    ran = lines.get(_name(path), {})
    first, last = mutant.lines
    if mutant.function is None:  # defaults, class bodies, constants: run on import
        found: set[str] = set()
        for tests in ran.values():
            found.update(tests)
        return found
    return {test for line in range(first, last + 1) for test in ran.get(str(line), ())}


def _measure(file: Path) -> dict[str, Any]:
    """Return each test's CPU time, and for each line the tests that run it.

    ``file`` holds what was measured before. A file of tests is measured again if it has changed, or a module
    that it runs.
    """
    old = json.loads(file.read_text()) if file.exists() else {}
    files = {}
    for path in TESTS:
        known = old.get(_name(path))
        if known is None or any(_version(ROOT / name) != v for name, v in known["versions"].items()):
            print("measuring", _name(path), flush=True)
            known = _measured(path)
            known["versions"] = {name: _version(ROOT / name) for name in (_name(path), *known["lines"])}
        files[_name(path)] = known
        file.write_text(json.dumps(old | files))
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for measured in files.values():
        seconds.update(measured["seconds"])
        for module, numbers in measured["lines"].items():
            for line, tests in numbers.items():
                lines.setdefault(module, {}).setdefault(line, []).extend(tests)
    return {"lines": lines, "seconds": seconds}


def _measured(path: Path) -> dict[str, Any]:
    def run(report: Callable[[str], None]) -> int:
        import pytest
        from coverage import Coverage

        coverage = Coverage(data_file=None, config_file=False, include=[str(module) for module in MODULES])
        coverage.start()
        watch = _Watch(coverage)
        code = int(pytest.main([*OPTIONS, _name(path)], plugins=[watch]))
        coverage.stop()
        data = coverage.get_data()
        lines = {
            _name(Path(file)): {
                line: sorted(set(tests) - {""}) for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        lines = {module: ran for module, ran in lines.items() if any(ran.values())}
        report(json.dumps({"seconds": watch.seconds, "lines": lines}))
        return 0 if code == 5 else code  # 5: a module without examples

    code, words = _forked(run)
    if code != 0:
        raise SystemExit(f"{_name(path)} fails on the unchanged library: mend that first")
    measured: dict[str, Any] = json.loads(words)
    return measured


class _Watch:
    """Plugin of pytest that notes the CPU time of each test and sets coverage's context."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds = coverage, dict[str, float]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.start = time.process_time()
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.coverage.switch_context("")
        self.seconds[nodeid] = round(time.process_time() - self.start, 4)


class _Chosen:
    """Plugin of pytest that runs these tests in this order, and reports the first that fails."""

    def __init__(self, tests: Sequence[str], report: Callable[[str], None]) -> None:
        self.rank, self.report = {test: rank for rank, test in enumerate(tests)}, report

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.rank), key=lambda item: self.rank[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.report(report.nodeid + "\n")


class _Replaced(importlib.abc.MetaPathFinder):
    """Import one module from a syntax tree."""

    def __init__(self, path: Path, tree: Any) -> None:
        self.path, self.tree = path, tree
        self.module = _module(path)

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        loader = _Loader(fullname, str(self.path))
        loader.tree = self.tree
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


class _Loader(SourceFileLoader):
    tree: Any

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self.tree, self.path, "exec", dont_inherit=True)
        return code


def _pytest(tests: Sequence[str], report: Callable[[str], None]) -> int:
    import pytest

    files = sorted({test.split("::")[0] for test in tests})
    return int(pytest.main([*OPTIONS, *files], plugins=[_Chosen(tests, report)])) if tests else 0


def _forked(
    run: Callable[[Callable[[str], None]], int], limit: float | None = None
) -> tuple[int | None, str]:
    """Call ``run`` in a child; return its exit status and what it reported.

    The status is None if the child needed more CPU seconds than ``limit``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
            null = os.open(os.environ.get("MUTATION_LOG", os.devnull), os.O_RDWR | os.O_CREAT)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            status = run(lambda text: _write(writer, text))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    deadline = time.monotonic() + (20 * limit if limit is not None else 3600)
    words = bytearray()
    os.set_blocking(reader, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reader, 1 << 16):
                words += part
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 1 << 16):
            words += part
    os.close(reader)
    return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), words.decode()


def _write(file: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(file, data) :]


def _preload() -> None:
    """Import what the tests import, but nothing of this library, so that the children need not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py does
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in [
        *(
            "gymnasium",
            "hypothesis",
            "matplotlib.pyplot",
            "numpy",
            "pytest",
            "scipy.optimize",
            "tensordict.nn",
        ),
        *("torch", "torch._dynamo", "torch.func", "torchrl.checkpoint", "torchrl.collectors", "torchrl.envs"),
        *("torchrl.modules", "torchrl.objectives", "torchrl.record", "tyro", "xmltodict"),
    ]:
        importlib.import_module(name)
    sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "recipes", "benchmarks")]
    loaded = [name for name in sys.modules if name.split(".")[0] == "safe_components"]
    assert not loaded, f"{loaded} would hide the mutants"
    gc.freeze()  # the children collect their own garbage only


def _read(file: Path) -> dict[str, dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def _report(results: list[dict[str, Any]]) -> None:
    print("\nsurvivors")
    for result in results:
        if not result["killed"]:
            print(" ", _line(result))
    print()
    groups = {"all": results}
    for result in results:
        groups.setdefault(result["module"], []).append(result)
    for name, group in sorted(groups.items()):
        killed = sum(result["killed"] for result in group)
        print(f"{name:45} {killed:5} of {len(group):5} killed  {killed / len(group):6.1%}")


def _line(result: dict[str, Any]) -> str:
    verdict = f"killed by {result['by']}" if result["killed"] else f"SURVIVED {result['by']}"
    place = f"{result['module'].removeprefix('safe_components/')}:{result['lines'][0]}"
    return f"{place} #{result['number']} {verdict}\n      - {result['before']}\n      + {result['after']}"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _version(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    main()
