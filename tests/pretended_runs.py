"""A recipe that only pretends to train, for tests of what starts, stops and continues runs."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

from safe_components.studies import Member, Outcome, run_members
from safe_components.studies.member_process import frames_reached
from safe_components.training import EnvConfig, RecipeConfig, RunConfig

RECIPE = """
import pathlib, signal, sys, time, yaml
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config = yaml.safe_load(pathlib.Path(words["--config"]).read_text())
directory = pathlib.Path(words.get("--resume") or words["--run-dir"])
total, seed = config["run"]["total_frames"], config["run"]["seed"]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1) or (len(stop) > 1 and sys.exit(3)))
with open(directory / "started", "a") as file:
    file.write(("resumed" if "--resume" in words else "new") + "\\n")
(directory / "config.yaml").write_text("")
if seed == 13:
    sys.exit("error: seed 13 does not train")
path = directory / "metrics.csv"
frames = int(path.read_text().split()[-1].split(",")[0]) if "--resume" in words else 0
with open(path, "a" if frames else "w") as file:
    if not frames:
        file.write("frames,x\\n")
    while frames < total and not stop:
        time.sleep(config["nap"])
        frames += 10
        file.write(f"{frames},1\\n")
        file.flush()
    if stop and config["deaf"]:
        time.sleep(600)
    (directory / "checkpoint" / f"checkpoint-{frames}").mkdir(parents=True)
"""


@dataclasses.dataclass(frozen=True)
class PretendedConfig(RecipeConfig):
    """What the recipe above reads, besides seed and frames."""

    recipe: ClassVar[str] = "pretended"
    nap: float = 0.0
    """seconds that 10 frames take"""
    deaf: bool = False
    """do not leave when asked to"""


def pretended_member(directory, seed, total=50, **settings):
    """A member of a study whose recipe is the one above; seed 13 fails."""
    path = directory / "pretended.py"
    path.write_text(RECIPE)
    run = RunConfig(seed=seed, total_frames=total)
    config = PretendedConfig(env=EnvConfig(id="PointCircle"), run=run, **settings)
    return Member("pretended", path, config, directory / "study" / "pretended" / f"seed-{seed}")


def starts(member):
    """How the processes of a member have started, each ``new`` or ``resumed``."""
    return (member.directory / "started").read_text().split()


def interrupt_after_start(members, pool, signals) -> Outcome:
    """Run members, and interrupt this process once those that run at a time train, as a terminal would."""
    code = (
        "import os, signal, sys, time\n"
        "paths, signals = sys.argv[2:], int(sys.argv[1])\n"
        "for path in paths:\n"
        "    while not os.path.exists(path) or open(path).read().count(chr(10)) < 2: time.sleep(0.05)\n"
        "for _ in range(signals):\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    time.sleep(1.5)\n"
    )
    paths = [str(member.directory / "metrics.csv") for member in members[: pool.slots]]
    with subprocess.Popen([sys.executable, "-c", code, str(signals), *paths]):
        return run_members(members, pool, progress=False)


def wait_until(condition, seconds=300):
    """Wait for what other processes do."""
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def process_of(directory):
    """The number of the process that runs the member of this directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if any(word.endswith("member_process.py") for word in words) and str(directory) in words:
            return int(path.parent.name)
    raise ProcessLookupError(f"no process runs {directory}")


def parent_of(process):
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


@contextlib.contextmanager
def killed_at(frames, directory, victim=lambda process: process):
    """SIGKILL the process of a member, or what ``victim`` makes of it, once it has reached these frames."""

    def kill():
        wait_until(lambda: frames_reached(directory) >= frames)
        os.kill(victim(process_of(directory)), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
