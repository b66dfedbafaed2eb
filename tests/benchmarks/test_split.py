"""The time of a run by phase."""

import numpy as np
import pytest
import split


def test_the_shares_add_up_and_count_the_last_checkpoint():
    spent = {phase: [0.0, 0.0] for phase in split.PHASES}
    spent |= {"collecting": [10.0, 10.0], "learning": [20.0, 30.0], "saving": [0.0, 4.0]}
    rows = {f"seconds_{phase}": np.array(seconds) for phase, seconds in spent.items()}
    rows |= {"frames": np.array([100.0, 200.0]), "wall_seconds": np.array([40.0, 76.0])}
    parts = split.split(rows)
    assert (parts["frames"], parts["seconds"]) == (200.0, 80.0)
    assert parts["learning"] == pytest.approx(50 / 80)
    assert parts["saving"] == pytest.approx(8 / 80)
    assert parts["unsaid"] == pytest.approx(2 / 80)
    assert sum(parts[phase] for phase in (*split.PHASES, "unsaid")) == pytest.approx(1.0)


def test_rows_without_times_are_refused():
    with pytest.raises(ValueError, match="no seconds_"):
        split.split({"frames": np.array([100.0])})
