"""Runs of a few seconds: options that make every recipe small, and what trains with them."""

from safe_components.training import Checkpoints, Task, load_config, overlay, parse_config, read_metrics

# Four whole episodes of 50 steps in each batch of 200 frames, and one row of metrics for each batch.
_SHARED = {
    "env": {"id": "PointCircle", "num_envs": 4, "frame_skip": 1, "max_episode_steps": 50},
    "run": {
        "total_frames": 1200,
        "log_interval": 200,
        "eval_interval": 0,
        "eval_episodes": 2,
        "checkpoint_interval": 400,
        "loggers": [],
        "progress": False,
    },
    "collect": {"frames_per_batch": 200, "warmup_frames": 400},
    "policy": {"hidden_sizes": [16, 16]},
}
_OFF_POLICY = {
    "collect": {"updates_per_frame": 0.02},
    "replay": {"size": 2000, "batch_size": 32},
    "critics": {"hidden_sizes": [16, 16], "warmup_updates": 5},
}
_OWN = {
    "cvpo": {"estep": {"num_particles": 8}},
    "ppo_lag": {"values": {"hidden_sizes": [16, 16]}, "update": {"epochs": 2, "batch_size": 50}},
}


def small(recipe, *flags, **settings):
    """The recipe's configuration for a small run, with flags as on the command line and nested settings."""
    config = overlay(recipe.Config(), _SHARED, "small")
    if hasattr(config, "replay"):
        config = overlay(config, _OFF_POLICY, "small")
    config = overlay(config, _OWN.get(config.recipe, {}), "small")
    config = overlay(config, settings, "settings")
    return parse_config(recipe.Config, [str(flag) for flag in flags], default=config)


def train(recipe, directory, *flags, **settings):
    """Train in ``directory``; the rows of metrics, and what was trained."""
    learner = recipe.main(small(recipe, "--run-dir", directory, *flags, **settings))
    return read_metrics(directory / "metrics.csv"), learner


def restored(recipe, directory, learner):
    """A learner made anew, with the state of the newest checkpoint."""
    config = load_config(recipe.Config, directory)
    fresh = type(learner)(config, Task(config))
    Checkpoints(directory / "checkpoint").load({"learner": fresh})
    return fresh
