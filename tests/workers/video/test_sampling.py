import math

import pytest

from vococache.errors import InputError
from vococache.workers.video.sampling import FrameSampling, Targets


def chosen(times: list[float], duration: float, sampling: FrameSampling) -> list[int]:
    """Indices of the frames that `sampling` takes of frames shown at `times`, which stream by."""
    targets = Targets(sampling, duration if sampling.num_frames else None)
    return [index for index, until in enumerate([*times[1:], duration]) for _ in range(targets.take(until))]


def by_definition(times: list[float], moments: list[float]) -> list[int]:
    return [max(index for index, time in enumerate(times) if time <= moment) for moment in moments]


CLIPS = {
    "cfr": ([i / 30 for i in range(100)], 100 / 30),
    "ntsc": ([i * 1001 / 30000 for i in range(100)], 100 * 1001 / 30000),
    "vfr": ([0.0, 0.1, 0.15, 0.9, 1.0, 2.0, 2.001], 3.5),
    "one frame": ([0.0], 0.04),
    "shorter than a period": ([0.0, 0.2], 0.4),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("fps", [0.3, 1.0, 2.0, 29.97, 60.0])
def test_fps_takes_the_frame_on_display(clip: str, fps: float) -> None:
    times, duration = CLIPS[clip]
    moments = [i / fps for i in range(1000) if i / fps < duration]
    assert chosen(times, duration, FrameSampling(fps=fps)) == by_definition(times, moments)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("count", [1, 2, 7, 250])
def test_num_frames_are_spread_over_the_duration(clip: str, count: int) -> None:
    times, duration = CLIPS[clip]
    moments = [(i + 0.5) * duration / count for i in range(count)]
    found = chosen(times, duration, FrameSampling(num_frames=count))
    assert found == by_definition(times, moments)
    assert len(found) == count


def test_a_frame_at_the_very_moment_is_taken() -> None:
    """Not the one before it: 1.0 s is the 30th frame of 30 fps, whatever rounding does to 30 * (1 / 30)."""
    times = [i / 30 for i in range(3000)]
    assert chosen(times, 100.0, FrameSampling(fps=1.0)) == list(range(0, 3000, 30))


@pytest.mark.parametrize(
    "bad", [{"fps": 0}, {"fps": -1}, {"fps": math.nan}, {"fps": math.inf}, {"fps": 1001}, {"num_frames": 0}]
)
def test_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        FrameSampling(**bad)  # type: ignore[arg-type]


def test_one_of_the_two() -> None:
    assert FrameSampling() == FrameSampling(fps=1.0)
    with pytest.raises(InputError, match="both"):
        FrameSampling(fps=1.0, num_frames=3)


@pytest.mark.parametrize("sampling", [FrameSampling(fps=2), FrameSampling(num_frames=8)])
def test_plain_values_and_back(sampling: FrameSampling) -> None:
    assert FrameSampling.from_dict(sampling.to_dict()) == sampling
    assert len(sampling.to_dict()) == 1


def test_expected_frames() -> None:
    assert FrameSampling(fps=2).expected_frames(3.1) == 7
    assert FrameSampling(fps=1).expected_frames(0.2) == 1
    assert FrameSampling(fps=1).expected_frames(None) is None
    assert FrameSampling(num_frames=8).expected_frames(None) == 8


def test_what_is_asked_for_wins_over_what_the_model_was_made_for() -> None:
    assert FrameSampling.chosen(None, None, {"fps": 2.0}) == FrameSampling(fps=2.0)
    assert FrameSampling.chosen(None, None, {"num_frames": 8}) == FrameSampling(num_frames=8)
    assert FrameSampling.chosen(None, None) == FrameSampling(fps=1.0)
    assert FrameSampling.chosen(5.0, None, {"num_frames": 8}) == FrameSampling(fps=5.0)
    assert FrameSampling.chosen(None, 4, {"fps": 2.0}) == FrameSampling(num_frames=4)
