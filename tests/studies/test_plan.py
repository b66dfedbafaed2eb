"""Studies are planned as configurations, and refused before anything starts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

import cvpo
import study
from safe_components.studies import VARIANTS, plan, variant_table
from safe_components.training import config_to_dict, leaves, parse_config
from safe_components.training.config import flag_of

ROOT = Path(__file__).parents[2]


def shared(words):
    return study.shared_settings(words.split())


def named(choices):
    """Choices are compared by name."""
    return "none" if choices is None else str(choices).lower()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_configuration_of_its_recipe(name, tmp_path):
    (member,) = plan([name], [3], tmp_path, shared=shared("--total-frames 1000 --cost-limit 10"))
    values, variant = leaves(member.config), VARIANTS[name]
    assert (values["run.seed"], values["run.total_frames"]) == (3, 1000)
    assert values["budget.cost_limit"] == (10.0,)
    assert member.recipe.is_file()
    assert member.config.recipe == variant.recipe == member.recipe.stem
    assert {path: values[path] for path in variant.changes} == variant.changes
    for path, (other, factor) in variant.relative.items():
        assert np.allclose(values[path], factor * np.asarray(values[other]))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recipe_reads_the_file_of_a_member_as_it_was_planned(name, tmp_path):
    (member,) = plan([name], [3], tmp_path, settings="PointCircle")
    path = member.write()
    read = parse_config(type(member.config), ["--config", str(path), "--run-dir", str(member.directory)])
    where = {"run_dir": member.directory, "config": path}
    assert read == dataclasses.replace(member.config, run=dataclasses.replace(member.config.run, **where))


def test_variants_differ_from_one_another(tmp_path):
    members = plan(list(VARIANTS), [0], tmp_path)
    default = next(member.config for member in members if member.label == "cvpo")
    same = {member.label for member in members if member.config == default}
    assert same == {"cvpo"}
    others = [member for member in members if member.label not in same]
    assert len({(member.recipe, member.config) for member in others}) == len(others)


def test_settings_of_a_variant_come_after_those_for_all(tmp_path):
    members = plan(
        [
            "cvpo",
            "few-particles:estep.epsilon=0.3,policy.hidden_sizes=8 9,critics.layer-norm=false",
            "limit-decay",
            "cvpo:trust-region=soft,trust-region.coef-mean=2e-3,env.num-envs=3",
        ],
        [5, 6],
        tmp_path,
        shared=shared("--cost-limit 20 --total-frames 3000"),
        changes={"estep.num-particles": "7", "estep.epsilon": "0.2"},
    )
    assert [(m.label.partition(":")[0], m.config.run.seed) for m in members] == [
        (name, seed) for seed in (5, 6) for name in ("cvpo", "few-particles", "limit-decay", "cvpo")
    ]
    first, few, decay, soft = (member.config for member in members[:4])
    assert (first.estep.num_particles, first.estep.epsilon, first.critics.layer_norm) == (7, 0.2, True)
    assert (few.estep.num_particles, few.estep.epsilon, few.critics.layer_norm) == (4, 0.3, False)
    assert few.policy.hidden_sizes == (8, 9)
    assert (decay.budget.start, decay.budget.decay_frames) == ((80.0,), 1500)
    assert (type(soft.trust_region).__name__, soft.trust_region.coef_mean) == ("SoftConfig", 2e-3)
    assert soft.env.num_envs == 3
    assert len({member.directory for member in members}) == 8


def test_settings_of_one_recipe_do_not_reach_the_others(tmp_path):
    changes = {"policy.lr": "0.1", "sac-lag.policy.lr": "0.2", "sac_lag.entropy.init-alpha": "3"}
    first, sac = plan(["cvpo", "sac-lag"], [0], tmp_path, changes=changes)
    assert first.config.policy.lr == 0.1
    assert (sac.config.policy.lr, sac.config.entropy.init_alpha) == (0.2, 3.0)


def test_only_flags_on_the_command_line_are_handed_on():
    words = "--variants cvpo --seed 3 --env.num_envs=10 --cost-limit 1 2 --run-dir x --loggers --jobs 2"
    assert shared(words) == {
        "env": {"num_envs": 10},  # its default, which was asked for all the same
        "run": {"loggers": ()},
        "budget": {"cost_limit": (1.0, 2.0)},
    }


def test_what_is_not_given_stays_each_recipes_own_and_what_is_given_wins(tmp_path):
    text = {"all": {"env.id": "PointCircle", "run.total_frames": 700}, "sac_lag": {"env.num_envs": 2}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(text))
    settings = str(tmp_path / "task.yaml")

    def planned(words):
        members = plan(["cvpo", "sac-lag"], [0], tmp_path, settings=settings, shared=shared(words))
        assert {member.config.run.settings for member in members} == {settings}
        return [(member.config.run.total_frames, member.config.env.num_envs) for member in members]

    assert planned("") == [(700, 10), (700, 2)]
    assert planned("--env.num-envs 10") == [(700, 10), (700, 10)]
    assert planned("--total-frames 900") == [(900, 10), (900, 2)]


def test_a_configuration_file_is_for_every_recipe(tmp_path):
    first = cvpo.Config()
    saved = dataclasses.replace(
        first,
        critics=dataclasses.replace(first.critics, gamma=0.9),
        run=dataclasses.replace(first.run, seed=8, run_dir=tmp_path / "that", total_frames=70),
    )
    document = {"recipe": "cvpo", "layout": 2, "config": config_to_dict(saved), "versions": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "part.yaml").write_text("critics: {gamma: 0.9}")
    whole, _ = plan(["cvpo", "no-kl"], [0], tmp_path / "study", file=tmp_path / "config.yaml")
    assert (whole.config.critics.gamma, whole.config.run.total_frames) == (0.9, 70)
    assert (whole.config.run.seed, whole.config.run.run_dir) == (0, None)
    part, sac = plan(["cvpo", "sac-lag"], [0], tmp_path / "study", file=tmp_path / "part.yaml")
    assert part.config.critics.gamma == sac.config.critics.gamma == 0.9
    with pytest.raises(ValueError, match=r"config\.yaml belongs to a run of cvpo, not of sac_lag"):
        plan(["sac-lag"], [0], tmp_path / "study", file=tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "name the variants to compare"),
        ("--variants no-kll", r"no variant 'no-kll'; did you mean no-kl\? --list shows all"),
        ("--variants cvpo zebra", r"no variant 'zebra'; --list shows all"),
        ("--variants td3-lag:trust-region=none", "no setting trust_region; it has .*multiplier"),
        ("--variants cvpo:epsilom=1", r"no setting epsilom; did you mean estep\.epsilon\?"),
        ("--variants cvpo:epsilon=1", r"no setting epsilon; did you mean estep\.epsilon\?"),
        ("--variants cvpo:trust-region.coef-mean=1", r"trust_region\.coef_mean; trust_region soft has it"),
        (
            "--variants cvpo sac-lag --set estep.num-particles=4",
            r"--set for sac_lag has no setting estep\.num_particles; it has .*entropy",
        ),
        ("--variants cvpo:policy.covariance=round", "covariance=round: .*'round'.* one of full, diagonal"),
        ("--variants cvpo:estep.num-particles=many", "particles=many: estep.num_particles is 'many'"),
        ("--variants cvpo:critics.layer-norm=maybe", "layer_norm is 'maybe', must be of type bool"),
        ("--variants cvpo:estep.epsilon", "'estep.epsilon' must be PATH=VALUE"),
        ("--variants cvpo:total-frames=5", "total-frames is the same for the whole study"),
        ("--variants cvpo:run.total_frames=5", "total-frames is the same for the whole study"),
        ("--variants cvpo --set seed=5", "seed is the same for the whole study: use --seed"),
        ("--variants cvpo --set run.run-dir=here", "run-dir is the same for the whole study"),
        ("--variants cvpo --set estep.epsilon", "'estep.epsilon' must be PATH=VALUE"),
        ("--variants cvpo --set estep.epsilon=-1", "estep.epsilon is -1.0, must be positive"),
        ("--variants cvpo --set td3-lag.policy.lr=3", "no variant of td3_lag.py is among cvpo"),
        ("--variants cvpo --set cvpo.algorithm.delay=3", "no setting algorithm.delay"),
        ("--variants cvpo cvpo", "variants cvpo and cvpo are the same"),
        ("--variants cvpo --seeds 0", "seeds is 0, must be at least 1"),
        ("--variants cvpo --jobs 0", "jobs is 0, must be at least 1"),
        ("--variants cvpo --cost-limit 25 10", "2 limits, but PointCircle has 1 cost"),
        ("--variants cvpo --cost-limit -1", "cost_limit is .*-1"),
        ("--variants cvpo --settings Nowhere", "settings 'Nowhere': no such file"),
        ("--variants cvpo --config nowhere.yaml", "nowhere.yaml: no such file"),
        ("--variants cvpo --env.id PointCircl", "PointCircl"),
        ("--variants cvpo --ray somewhere", "ray is 'somewhere', must be local or HOST:PORT"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(tmp_path, flags, said):
    words = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "study"), *flags.split()]
    with pytest.raises(SystemExit, match=said) as stop:
        study.run(words)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "study").exists()


def test_the_list_is_the_table_in_the_docs(capsys):
    study.run(["--list"])
    printed = capsys.readouterr().out.strip()
    assert printed == variant_table()
    assert len(printed.splitlines()) == len(VARIANTS) + 2
    assert printed in (ROOT / "docs" / "studies.md").read_text()


def test_the_table_shows_options_that_the_recipes_take():
    for name, variant in VARIANTS.items():
        row = next(row for row in variant_table().splitlines() if row.startswith(f"| `{name}` |"))
        options = [f"--{flag_of(path)} {value}".replace("_", "-") for path, value in variant.changes.items()]
        assert [option for option in options if f"`{option}`" not in row] == []
