"""Moments of live frames: they run as the stream's clock does, never back, and say where a part begins."""

from fractions import Fraction

import pytest

from vococache.workers.video.live_clock import Grid, LiveClock

BASE = Fraction(1, 90_000)
NOW = 1_800_000_000.0


def connected(name: str = "mpegts") -> LiveClock:
    clock = LiveClock()
    clock.connect(name, BASE)
    return clock


def place(clock: LiveClock, seconds: float, arrived: float) -> tuple[float, str | None]:
    moment, begins = clock.place(round(seconds * 90_000), NOW + arrived)
    return round(moment - NOW, 4), begins


def test_the_first_is_of_its_arrival_and_the_others_follow_the_stream() -> None:
    clock = connected()
    assert place(clock, 500.0, 0.0) == (0.0, "start")
    assert place(clock, 500.5, 0.9) == (0.5, None), "late, as networks are"
    assert place(clock, 501.0, 0.9) == (1.0, None), "in a burst"


def test_a_gap_keeps_the_clock_and_a_jump_does_not() -> None:
    clock = connected()
    place(clock, 500.0, 0.0)
    assert place(clock, 520.0, 21.0) == (20.0, "gap")
    assert place(clock, 560.0, 22.0) == (22.0, "jump")
    assert place(clock, 560.5, 22.5) == (22.5, None)
    assert place(clock, 10.0, 23.0) == (23.0, "jump"), "back, another recording"
    assert place(clock, 9.0, 22.0) == (23.5, "jump"), "moments do not run back, not even where ours does"


def test_a_source_that_shows_a_picture_seldom_has_no_gaps() -> None:
    clock = connected()
    place(clock, 0.0, 0.0)
    assert [place(clock, at, at)[1] for at in (30.0, 60.0)] == ["gap", "gap"], "as far as is known by then"
    assert [place(clock, at, at) for at in (90.0, 120.0)] == [(90.0, None), (120.0, None)]


@pytest.mark.parametrize("wraps", [1 << 33])
def test_a_counter_that_begins_again(wraps: int) -> None:
    clock = connected()
    found = [clock.place((wraps - 45_000 + step * 90_000) % wraps, NOW) for step in range(3)]
    assert [round(moment - NOW, 4) for moment, _ in found] == [0.0, 1.0, 2.0]
    assert [begins for _, begins in found] == ["start", None, None]


def test_another_connection_begins_when_it_comes_or_goes_on_where_it_overlaps() -> None:
    clock = connected()
    place(clock, 500.0, 0.0)
    place(clock, 501.0, 1.0)
    clock.connect("mpegts", BASE)
    assert place(clock, 3.0, 10.0) == (10.0, "reconnect")
    clock.connect("mpegts", BASE)
    clock.overlaps()
    assert place(clock, 3.5, 30.0) == (10.5, "reconnect")
    clock.connect("mpegts", BASE)
    clock.floor = NOW + 100.0
    assert place(clock, 0.0, 40.0) == (100.0, "reconnect"), "never before what is stored"


def test_a_grid_takes_each_frame_once() -> None:
    grid = Grid(2.0)
    grid.begin(NOW)
    taken = [tenth for tenth in range(31) if grid.takes(NOW + tenth / 10)]
    assert taken == [0, 5, 10, 15, 20, 25, 30]
    grid.begin(NOW)
    assert [at for at in (0.0, 3.0, 3.4, 3.6) if grid.takes(NOW + at)] == [0.0, 3.0, 3.6]
