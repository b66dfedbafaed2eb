"""Variants and recipes of one's own in a study: registered, removed, and named by import path."""

from pathlib import Path

import pytest

import cvpo
from safe_components import cli
from safe_components.studies import VARIANTS, Variant, plan, register_variant, unregister_variant
from safe_components.training import leaves

WIDE = Variant("cvpo", "a wide KL ball", {"estep.epsilon": 0.5})


def test_a_registered_variant_is_planned_until_it_is_removed(tmp_path):
    register_variant("wide-ball", WIDE)
    try:
        (member,) = plan(["wide-ball"], [0], tmp_path)
        assert leaves(member.config)["estep.epsilon"] == 0.5
        with pytest.raises(ValueError, match="there is a variant 'wide-ball' already: choose another name"):
            register_variant("wide-ball", WIDE)
    finally:
        unregister_variant("wide-ball")
    assert "wide-ball" not in VARIANTS
    with pytest.raises(ValueError, match="there is no variant 'wide-ball'"):
        unregister_variant("wide-ball")
    with pytest.raises(ValueError, match="there is no variant 'wide-ball'; --list shows all"):
        plan(["wide-ball"], [0], tmp_path)


@pytest.mark.parametrize("name", ["", "my:variant", "a b", "a=1", "-x", "my.variant"])
def test_a_name_that_a_command_line_would_read_otherwise_is_refused(name):
    with pytest.raises(ValueError, match="a variant cannot be named"):
        register_variant(name, WIDE)
    assert name not in VARIANTS


def test_variants_are_not_changed_by_other_means():
    with pytest.raises(TypeError):
        VARIANTS["cvpo"] = WIDE


def test_variants_are_named_by_their_import_path(tmp_path):
    members = plan(
        ["own_parts:FAST", "own_parts:VARIANTS", "own_parts:FAST:estep.epsilon=0.2"], [0], tmp_path
    )
    found = {member.label: leaves(member.config) for member in members}
    assert {label: values["policy.lr"] for label, values in found.items()} == {
        "own_parts:FAST": 0.002,
        "own-slow": 1e-4,
        "own-fast": 0.002,
        "own_parts:FAST:estep.epsilon=0.2": 0.002,
    }
    assert found["own_parts:FAST:estep.epsilon=0.2"]["estep.epsilon"] == 0.2
    assert len({member.directory for member in members}) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_parts:Head", "is a type, must be a Variant or a dictionary of variants by name"),
        (
            "own_parts:SLOW",
            "variant own_parts:SLOW is 'own_parts:SLOW', but module 'own_parts' has no attribute",
        ),
        ("no_such_parts:V", "but there is no module 'no_such_parts'"),
        ("cvop:estep.epsilon=0.2", "there is no variant 'cvop'; did you mean cvpo?"),
        ("own_parts:FAST:epsilon", "'epsilon' must be PATH=VALUE"),
    ],
)
def test_what_is_no_variant_is_refused(name, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        plan([name], [0], tmp_path)


def test_a_recipe_of_ones_own_is_named_by_its_file_or_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_package_of_recipes"
    package.mkdir()
    (package / "__init__.py").touch()
    for file in (tmp_path / "my_cvpo.py", package / "my_other.py"):
        file.write_text(Path(cvpo.__file__).read_text())
    names = ["my_cvpo.py:policy.lr=0.01", "own_package_of_recipes.my_other", "cvpo"]
    changes = {"my_cvpo.estep.epsilon": "0.3", "my_other.estep.epsilon": "0.4", "estep.epsilon": "0.5"}
    members = plan(names, [0], tmp_path / "study", changes=changes)
    assert [member.recipe for member in members[:2]] == [tmp_path / "my_cvpo.py", package / "my_other.py"]
    assert [leaves(member.config)["estep.epsilon"] for member in members] == [0.3, 0.4, 0.5]
    assert leaves(members[0].config)["policy.lr"] == 0.01
    with pytest.raises(FileNotFoundError, match=r"there is no file 'other\.py'"):
        plan(["other.py"], [0], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no module 'own_package_of_recipes\.missing'"):
        plan(["own_package_of_recipes.missing"], [0], tmp_path)
    with pytest.raises(ValueError, match="there is no module 'no_such_package'"):
        plan(["no_such_package.cvpo"], [0], tmp_path)


def test_the_command_runs_a_recipe_by_its_module(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("argv", "path"):
        monkeypatch.setattr(cli.sys, name, getattr(cli.sys, name)[:])
    monkeypatch.setitem(cli.sys.modules, "__main__", cli.sys.modules["__main__"])
    (tmp_path / "own_folder_of_recipes").mkdir()
    (tmp_path / "own_folder_of_recipes" / "say.py").write_text("import sys\nprint('said', sys.argv[1:])\n")
    cli.main(["run", "own_folder_of_recipes.say", "--seed", "1"])
    assert capsys.readouterr().out == "said ['--seed', '1']\n"
    for name in ("own_folder_of_recipes.sya", "no_such_folder.say"):
        with pytest.raises(SystemExit, match=f"error: there is no (module|recipe) '{name}'"):
            cli.main(["run", name])
