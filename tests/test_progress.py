"""Progress: a bar on a terminal, log lines elsewhere."""

import io
import logging

import pytest

from imm_jax import progress
from imm_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_it_draws_nothing_and_logs_once_at_the_end(caplog, capsys, clock):
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("fit", 4, "step") as bar:
        assert bar.bar is None
        for step in range(4):
            clock[0] += 2
            bar.update(1, f"loss {step}")
    assert caplog.messages == ["fit: 4/4 step in 8.0 s, 0.5 step/s, loss 3"]
    assert capsys.readouterr() == ("", "")


def test_now_and_then_it_says_how_long_is_left(caplog, clock):
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("load", 4000, "B") as bar:
        for _ in range(10):
            clock[0] += 16
            bar.update(400)
    assert caplog.messages == [
        "load: 800 B/4.00 kB in 32.0 s, 25 B/s, 128 s left",
        "load: 1.60 kB/4.00 kB in 64.0 s, 25 B/s, 96 s left",
        "load: 2.40 kB/4.00 kB in 96.0 s, 25 B/s, 64 s left",
        "load: 3.20 kB/4.00 kB in 128.0 s, 25 B/s, 32 s left",
        "load: 4.00 kB/4.00 kB in 160.0 s, 25 B/s",
    ]


def test_slow_work_has_a_rate(caplog, clock):
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("fit", 2, "step") as bar:
        for _ in range(2):
            clock[0] += 60
            bar.update()
    assert caplog.messages == [
        "fit: 1/2 step in 60.0 s, 0.017 step/s, 60 s left",
        "fit: 2/2 step in 120.0 s, 0.017 step/s",
    ]


def test_what_was_done_before_says_nothing_of_the_rate(caplog, clock):
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("fit", 100, "step") as bar:
        bar.skip(90)
        for _ in range(2):
            clock[0] += 40
            bar.update()
    assert caplog.messages == [
        "fit: 91/100 step in 40.0 s, 0.025 step/s, 360 s left",
        "fit: 92/100 step in 80.0 s, 0.025 step/s, 320 s left",
    ]


@pytest.mark.parametrize("done", [0, 1])
def test_before_anything_is_done_it_says_that_it_works(done, caplog, monkeypatch):
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.01)
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("sample", 2) as bar:
        bar.done = done
        bar.waiting.join()
        assert len(caplog.messages) == 1 - done
        bar.update(2 - done)
    assert "sample: under way, nothing done" in "".join(caplog.messages) or done


def test_without_a_total_and_without_time(caplog, clock):
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("count") as bar:
        bar.update(0)
    assert caplog.messages == ["count: 0 it in 0.0 s, 0.0 it/s"]


def test_an_error_is_not_followed_by_a_claim(caplog, clock):
    with (
        caplog.at_level(logging.INFO, "imm_jax"),
        pytest.raises(ZeroDivisionError),
        Progress("fit", 2) as bar,
    ):
        bar.update()
        raise ZeroDivisionError
    assert caplog.messages == []


def test_on_a_terminal_it_draws_a_bar(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, "imm_jax"), Progress("sample", 3, "tok") as bar:
        bar.update(3, "5 tokens")
        bar.bar.refresh()
    drawn = terminal.getvalue()
    assert "sample: 100%" in drawn and "3.00/3.00" in drawn and "5 tokens" in drawn
    assert caplog.messages == ["sample: 3/3 tok in " + caplog.messages[0].split(" in ")[1]]


def test_a_bar_begins_where_work_goes_on(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with Progress("fit", 4, "step") as bar:
        bar.skip(2)
        bar.update(1)
        bar.bar.refresh()
        shown = bar.bar.format_dict
    assert (shown["n"], shown["initial"]) == (3, 2)
    assert "fit:  75%" in terminal.getvalue()
