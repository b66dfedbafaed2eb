"""The page of published settings: its commands parse, and say what its table says."""

import math
import re
import shlex
from pathlib import Path

import pytest

import cvpo
from safe_components.training import leaves, options, parse_config
from safe_components.training.config import flag_of

PAGE = (Path(__file__).parents[1] / "docs" / "published_settings.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
COLUMNS = {"authors": 1, "FSRL": 2}


def flags(command):
    """Flags and their values, joined, of a command line; a switch has the value yes or no."""
    script, words = command.split()[1], shlex.split(command.replace("\\\n", " "))[2:]
    assert script == "recipes/cvpo.py"
    found = {}
    for word in words:
        if ".no-" in word:
            found[word.replace(".no-", ".")] = ["no"]
        elif word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return {name: " ".join(values) for name, values in found.items()}


def table(column):
    """Our value of each flag in one column: what follows the arrow, or else their setting's name."""
    values = {}
    for row in re.findall(r"^\| `--.*\|$", PAGE, re.M):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        cell = cells[column]
        if cell:
            value = cell.rpartition("→")[2] if "→" in cell else re.sub(r"^`\w+` ", "", cell)
            values[cells[0].strip("`")] = value.strip()
    return values


COMMAND = dict(zip(COLUMNS, map(flags, COMMANDS), strict=True))


@pytest.mark.parametrize("code", COLUMNS)
def test_commands_are_accepted(code):
    command = COMMANDS[list(COLUMNS).index(code)]
    config = parse_config(cvpo.Config, shlex.split(command.replace("\\\n", " "))[2:])
    assert config.estep.num_particles == int(COMMAND[code]["--estep.num-particles"])
    assert config.env.max_episode_steps == int(COMMAND[code]["--env.max-episode-steps"])


@pytest.mark.parametrize("code", COLUMNS)
def test_table_and_command_agree(code):
    assert table(COLUMNS[code]) == {k: v for k, v in COMMAND[code].items() if k != "--env.id"}


def test_rows_are_flags_of_the_recipe():
    rows = {row.replace("-", "_") for row in re.findall(r"^\| `--([\w.-]+)` \|", PAGE, re.M)}
    assert len(rows) > 30
    published = cvpo.Config(multiplier=options.DualConfig(), reference=options.PolyakConfig())
    assert rows <= {flag_of(path) for path in leaves(published)} | {"multiplier", "policy"}


@pytest.mark.parametrize("code", COLUMNS)
def test_conversions(code):
    ours = COMMAND[code]
    number = {name: float(value) for name, value in ours.items() if re.fullmatch(r"[\d.]+", value)}
    episodes = {"authors": 20, "FSRL": 10}[code]
    assert number["--collect.frames-per-batch"] == episodes * number["--env.max-episode-steps"]
    assert number["--env.num-envs"] == episodes
    assert number["--replay.window"] == number["--replay.size"]
    if code == "authors":
        assert math.isclose(number["--collect.updates-per-frame"], 40 / 300, abs_tol=1e-4)
        assert number["--total-frames"] == 300 * number["--collect.frames-per-batch"]
        assert f"--trust-region.coef-mean {0.1 * 32:g} --trust-region.coef-cov {10 * 32:g}" in PAGE
        linear = 0.4 * 200 * number["--collect.frames-per-batch"]
        assert f"here {linear:.0f}" in PAGE
        # The same mean excess: that of exp(-5 x) over [0, 1], and of a straight line over its first 0.4.
        assert math.isclose((1 - math.exp(-5)) / 5, 0.4 / 2, abs_tol=2e-3)
    else:
        assert math.isclose(number["--critics.polyak"], 1 - 0.05)
        assert number["--total-frames"] == 100 * 20_000


def test_determinants_at_their_clamp():
    for actions, deviation in ((2, 0.03), (8, 0.42)):
        assert deviation ** (2 * actions) < 1e-6 < (1.06 * deviation) ** (2 * actions)
