"""The benchmark of a batch of learners prints what it measured."""

import population


def test_it_prints_a_line_for_each_size(capsys, monkeypatch):
    monkeypatch.setattr(population, "TRANSITIONS", 100)
    sizes = ["replay.batch_size=8", "estep.num_particles=4", "mstep.iterations=1"]
    population.main(["--members", "1", "2", "--repeats", "1", "--set", *sizes])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "members  updates/s in turn  as one batch  ratio"
    for count, line in zip((1, 2), lines, strict=True):
        members, in_turn, together, ratio = map(float, line.split())
        assert members == count
        assert abs(ratio - together / in_turn) < 0.1 * ratio + 0.02
