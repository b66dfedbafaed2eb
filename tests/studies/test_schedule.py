"""Members of a study are run a few at a time, interrupted, tried again and continued."""

import dataclasses
import signal
import time

import numpy as np
from pretended_runs import interrupt_after_start, killed_at, pretended_member, starts

from safe_components.studies import LocalPool, run_members
from safe_components.studies.member_process import finished, frames_reached
from safe_components.studies.pool import last_words
from safe_components.studies.results import read_rows


def test_a_failing_member_is_told_and_the_others_go_on(tmp_path, capsys):
    members = [pretended_member(tmp_path, seed) for seed in (0, 13, 1, 2)]
    outcome = run_members(members, LocalPool(2), progress=False)
    assert [m.config.run.seed for m in outcome.failed] == [13]
    assert {m.config.run.seed for m in outcome.finished} == {0, 1, 2}
    said = f"pretended/seed-13 FAILED: error: seed 13 does not train ({members[1].log})"
    assert said in capsys.readouterr().out
    # Once more: only what failed is tried again. With more frames, what had finished goes on.
    outcome = run_members(members, LocalPool(2), progress=False)
    assert (len(outcome.skipped), len(outcome.failed), len(outcome.finished)) == (3, 1, 0)
    assert [starts(m) for m in members] == [["new"], ["new", "new"], ["new"], ["new"]]
    more = pretended_member(tmp_path, 0, 80)
    outcome = run_members([more], LocalPool(1), progress=False)
    assert outcome.finished == [more]
    assert starts(more) == ["new", "resumed"]
    assert read_rows(more.directory / "metrics.csv")["frames"].tolist() == list(range(10, 81, 10))


def test_a_lost_member_is_told_by_what_ended_it_not_by_an_older_error(tmp_path, capsys):
    lost, other = (pretended_member(tmp_path, seed, 1000, nap=0.02) for seed in (0, 1))
    lost.directory.mkdir(parents=True)
    lost.log.write_text("error: of yesterday\n")
    with killed_at(100, lost.directory):
        outcome = run_members([lost, other], LocalPool(2), progress=False)
    assert (outcome.failed, outcome.finished) == ([lost], [other])
    told = f"pretended/seed-0 FAILED: error: the process was killed by signal {signal.SIGKILL:d} (Killed); "
    assert told in capsys.readouterr().out
    assert run_members([lost, other], LocalPool(2), progress=False).finished == [lost]
    assert starts(other) == ["new"]


def test_the_last_words_are_those_of_the_last_process(tmp_path):
    log = tmp_path / "output.log"
    log.write_text("error: of yesterday\n")
    start = log.stat().st_size
    for text, words in [
        ("", "no output"),
        ("\n  \n", "no output"),
        ("a\nb\n", "b"),
        ("error: x\nbye\n", "error: x"),
    ]:
        log.write_text("error: of yesterday\n" + text)
        assert last_words(log, start) == words


def test_no_more_members_run_at_a_time_than_asked_for(tmp_path):
    class Counting(LocalPool):
        running, most = 0, 0

        def start(self, command, log):
            job = super().start(command, log)
            type(self).running += 1
            type(self).most = max(self.most, self.running)
            return Counted(job, type(self))

    @dataclasses.dataclass
    class Counted:
        job: object
        pool: type

        def poll(self):
            status = self.job.poll()
            self.pool.running -= status is not None
            return status

    run_members([pretended_member(tmp_path, seed) for seed in range(5)], Counting(2), progress=False)
    assert Counting.most == 2


def test_ctrl_c_lets_members_save_and_starts_no_more(tmp_path):
    members = [pretended_member(tmp_path, seed, 10_000, nap=0.02) for seed in range(3)]
    outcome = interrupt_after_start(members, LocalPool(2), signals=1)
    assert {m.config.run.seed for m in outcome.stopped} == {0, 1, 2}
    assert not outcome.failed
    assert not members[2].directory.exists()
    for member in members[:2]:
        assert any((member.directory / "checkpoint").iterdir())
        assert not finished(member.directory, 1)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    began = time.monotonic()
    member = pretended_member(tmp_path, 0, 10_000, nap=0.02, deaf=True)
    outcome = interrupt_after_start([member], LocalPool(1), signals=2)
    assert len(outcome.stopped) == 1
    assert time.monotonic() - began < 500  # it would have slept for 600 s


def test_a_member_stopped_before_its_first_checkpoint_starts_anew(tmp_path):
    member = pretended_member(tmp_path, 0)
    member.directory.mkdir(parents=True)
    (member.directory / "config.yaml").write_text("half of i")
    (member.directory / "metrics.csv").write_text("frames,x\n10,1\n2")
    assert run_members([member], LocalPool(1), progress=False).finished == [member]
    assert read_rows(member.directory / "metrics.csv")["frames"].tolist() == [10, 20, 30, 40, 50]


def test_frames_are_read_from_the_last_whole_row(tmp_path):
    path = tmp_path / "metrics.csv"
    assert frames_reached(tmp_path) == 0
    for text, frames in [("", 0), ("wall,fram", 0), ("wall,frames\n", 0), ("wall,frames\n1,2", 0),
                         ("wall,frames\n1,20\n2,4", 20), ("wall,frames\n" + "1,7\n" * 9000, 7)]:  # fmt: skip
        path.write_text(text)
        assert frames_reached(tmp_path) == frames
    path.write_text("frames,x\n10,\n20,3\n30")
    assert read_rows(path)["frames"].tolist() == [10, 20]
    assert np.isnan(read_rows(path)["x"][0])
