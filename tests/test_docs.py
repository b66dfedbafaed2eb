"""The code in the README and the docs runs as printed; commands are accepted, links and pictures exist."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
import yaml

import cvpo
import evaluate
import study
from safe_components import cli
from safe_components.training import config_to_dict, parse_config
from safe_components.training.config import LAYOUT, choices_of, fields, flag_of
from safe_components.training.recipes import load_recipe, recipe_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("**/*.md"))
RECIPES = ("cvpo", "discrete_cvpo", "sac_lag", "td3_lag", "ppo_lag")
# What stands for a reader's own words, and words to try.
PLACEHOLDERS = {"S": ["0"], "ID": ["PointCircle"], "NAME": ["PointCircle"], "...": ["--variants", "cvpo"]}


def names(page):
    return str(page.relative_to(ROOT))


def write_files(page):
    """Write the blocks that are files, whose first line is their name, into the current directory."""
    for block in re.finditer(r"^```\w+\n# (\w+\.\w+)\n(.*?)^```", page.read_text(), re.M | re.S):
        Path(block[1]).write_text(block[2])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow)
        if page.stem in ("ablations", "deploy", "own_parts")
        else page
        for page in PAGES
    ],
    ids=[names(page) for page in PAGES],
)
def test_code_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    scope = {"__name__": "__docs__"}
    # The commands of these pages are short and lead up to their code; those of other pages train for hours.
    kinds = "python|sh" if page.stem in ("ablations", "deploy", "own_parts") else "python"
    write_files(page)
    for block in re.finditer(rf"^```({kinds})\n(.*?)^```", page.read_text(), re.M | re.S):
        line = page.read_text()[: block.start()].count("\n") + 1
        if block[1] == "python":
            exec(compile("\n" * line + block[2], str(page), "exec"), scope)
        else:
            for command in block[2].replace("\\\n", "").splitlines():
                words = shlex.split(command, comments=True)
                program = {"python": [], "safe-components": ["-m", "safe_components"]}[words[0]]
                subprocess.run([sys.executable, *program, *words[1:]], check=True)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


# Commands


def commands(page):
    """The commands of a page, in code blocks and in running text, as lists of words."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    +|\$ )?((?:\.venv/bin/)?(?:python|safe-components|make) .*)$", text, re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = re.findall(r"`((?:python|safe-components|make) [^`]+)`", prose)
    found = [shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in lines + spans]
    return [words for words in found if re.search(r"[/=]|^(list|run|copy|[a-z-]+)$", words[1])]


@pytest.fixture
def accept(tmp_path, monkeypatch):
    """Check one command, without training; commands of one page are checked in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # an import path adds the current directory
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # for --device cuda

    class Planned(Exception):
        pass

    def planned(members):
        raise Planned

    monkeypatch.setattr(study, "check_limits", planned)
    monkeypatch.setattr(cli, "_export", lambda *words: None)  # there is no run

    def accept_recipe(file, words):
        if file.stem == "study":
            config = parse_config(study.Config, words, default=study.Config())
            if not (config.run.list_variants or config.run.report):
                with pytest.raises(Planned):
                    study.main(config, words)
        elif file.stem == "evaluate":
            tyro.cli(evaluate.Config, args=words)
        else:
            config_type = load_recipe(file).Config
            if "--resume" in words:
                run = Path(words[words.index("--resume") + 1])
                run.mkdir(parents=True, exist_ok=True)
                saved = {
                    "recipe": file.stem,
                    "layout": LAYOUT,
                    "config": config_to_dict(config_type()),
                    "versions": {},
                }
                (run / "config.yaml").write_text(yaml.safe_dump(saved))
            parse_config(config_type, words)

    def accept_command(program, first, *rest):
        words = [part for word in rest for part in PLACEHOLDERS.get(word, [word])]
        if program == "make":
            makefile = (ROOT / "Makefile").read_text()
            targets = [word for word in (first, *words) if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
            (arguments,) = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")] or [""]
            if first == "cvpo":
                accept_recipe(recipe_file("cvpo"), shlex.split(arguments))
        elif program == "safe-components" and first == "run":
            own = Path(words[0])
            accept_recipe(own if own.suffix else recipe_file(words[0]), words[1:])
        elif program == "safe-components":
            cli.main([first, *words])
        elif first.startswith("recipes/"):
            if "--help" not in words:
                accept_recipe(ROOT / first, words)
        else:  # a script of its own, which says in its source what it takes
            source = (ROOT / first).read_text()
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []

    return accept_command


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=names)
def test_commands_are_accepted(page, accept):
    refused = []
    write_files(page)
    for words in commands(page):
        try:
            accept(*words)
        except SystemExit as end:
            refused.append(f"{shlex.join(words)}: {end}")
    assert refused == []


def options():
    """Every option of the recipes, with the alternatives of each exclusive choice."""
    found = {}

    def add(group, prefix=""):
        for path, hint, _ in fields(group, prefix):
            choices = choices_of(hint)
            found.setdefault("--" + flag_of(path).replace("_", "-"), {}).update(choices)
            for alternative in filter(None, choices.values()):
                add(alternative(), f"{path}.")

    for config in (study.Config(), *(load_recipe(recipe_file(name)).Config() for name in RECIPES)):
        add(config)
    others = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(evaluate.Config)}
    return found | {option: {} for option in others | {"--set", "--list", "--help", "--sampled"}}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=names)
def test_options_in_running_text_exist(page):  # the changelog names old ones, too
    known = options()
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for span in re.findall(r"`(--[^`]+)`", prose):
        for flag, value in re.findall(r"(--[\w.-]+)(?: ([\w-]+))?", span):
            flag = re.sub(r"(--|\.)no-", r"\1", flag)
            assert flag in known or flag in ("--deps", "--editable"), span
            assert ":" in span or not known.get(flag) or value in ("", *known[flag]), span


def test_the_settings_for_thousands_of_copies_follow_from_their_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (words,) = [words for words in commands(ROOT / "docs" / "gpu.md") if "--replay.window" in words]
    config = parse_config(cvpo.Config, words[2:])
    copies, frames = config.env.num_envs, config.env.num_envs * config.env.steps_per_action
    found = {
        "frames in a batch": config.collect.frames_per_batch,
        "updates in a batch": config.collect.frames_per_batch * config.collect.updates_per_frame,
        "warm-up": config.collect.warmup_frames,
        "rows of a batch": config.replay.batch_size,
        "window": config.replay.window,
        "buffer": config.replay.size,
    }
    rules = [8 * frames, 32, 32 * frames, copies / 4, 50 * frames, 1000 * frames]
    assert found == pytest.approx(dict(zip(found, rules, strict=True)), rel=0.05)
