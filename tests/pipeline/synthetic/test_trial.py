"""Trials: the model's accuracy on unseen clips, through files, ingest, store and answers."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from vococache.errors import VideoNotFoundError
from vococache.model.cache import VoCoCache
from vococache.pipeline.ask import open_reader
from vococache.pipeline.synthetic import trial
from vococache.pipeline.synthetic.scene import LOOKS, split_scenes
from vococache.pipeline.synthetic.trial import Trial, TrialAnswer, ingest_clips, question_only, run_trial, write_clips
from vococache.workers.reason import ReasonStage

CLIPS = 3
UNSEEN = 20  # clips whose answers hold the embedded model's accuracy


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> ReasonStage:
    """Over a store of clips of three splits."""
    folder = tmp_path_factory.mktemp("trial")
    scenes = split_scenes("test", CLIPS) | split_scenes("compositional", CLIPS) | split_scenes("unseen", UNSEEN)
    report = ingest_clips(scenes, folder / "clips", str(folder / "store"))
    assert (report.ok, len(report.done), report.segments) == (True, len(scenes), len(scenes) * len(LOOKS))
    return open_reader(str(folder / "store"))


def test_a_trial_asks_about_every_clip(stage: ReasonStage) -> None:
    for split in ("test", "compositional"):
        scenes = split_scenes(split, CLIPS)
        found = run_trial(stage, scenes, asked=4)
        assert [row.video for row in found.rows] == [name for name in scenes for _ in range(4)]
        assert 0 <= found.accuracy <= 1
        assert sum(asked for _, asked in found.by_type().values()) == len(found.rows)
        assert run_trial(stage, scenes, asked=4) == found, "the same again"


def test_the_embedded_model_answers_about_clips_that_it_never_saw(stage: ReasonStage) -> None:
    """Through files, ingest, store and ask: 98% of 8,000 questions (docs/results); 240 here, so a margin below."""
    scenes = split_scenes("unseen", UNSEEN)
    found = run_trial(stage, scenes, asked=12)
    assert found.accuracy > 0.94, found.by_type()
    assert question_only(scenes.values(), asked=12, learned_from=2000) < 0.5


def test_the_segments_are_the_instants_that_training_looks_at(stage: ReasonStage) -> None:
    for name in split_scenes("test", CLIPS):
        assert stage.store.timestamps(name)[:, 0].tolist() == list(LOOKS)


@pytest.mark.parametrize("look", get_args(trial.Look))
@pytest.mark.parametrize("tokens", [None, 1])
def test_what_an_answer_rests_on(stage: ReasonStage, look: trial.Look, tokens: int | None) -> None:
    """The cache that is read: which segments, in which order, and how many tokens of each."""
    span = stage.select("test_0001", None, None)
    data = stage.read(span, tokens).data
    context = trial._load(stage, "test_0001", tokens, look)
    buffer = context.placed.buffer

    def placed(order: list[int]) -> torch.Tensor:
        return stage.model.place(VoCoCache(data[order])).buffer

    in_order = placed(list(range(len(LOOKS))))
    if look == "all":
        torch.testing.assert_close(buffer, in_order)
    elif look == "one":
        torch.testing.assert_close(buffer, placed([4]))
    else:
        assert buffer.shape == in_order.shape
        # Values carry no positions: there are the same ones, in another order.
        values, known = buffer[:, 1], in_order[:, 1]
        assert not torch.equal(values, known)
        torch.testing.assert_close(values.sort(dim=2).values, known.sort(dim=2).values)


def test_a_clip_that_was_not_ingested_is_not_left_out(stage: ReasonStage) -> None:
    with pytest.raises(VideoNotFoundError):
        run_trial(stage, split_scenes("test", CLIPS + 1), asked=1)


def test_clips_that_are_there_are_kept(tmp_path: Path) -> None:
    scenes = split_scenes("test", 2)
    first, second = write_clips(scenes, tmp_path)
    assert (first.name, second.name) == ("test_0000.mp4", "test_0001.mp4")
    before = first.stat().st_mtime_ns
    content = second.read_bytes()
    for other in (None, b"of another release"):
        second.unlink() if other is None else second.write_bytes(other)
        write_clips(scenes, tmp_path)
        assert first.stat().st_mtime_ns == before
        assert second.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [first, second]


def row(video: str, prediction: str, kind: str = "color") -> TrialAnswer:
    return TrialAnswer(video, "what color is it?", "red", prediction, kind, "colour_of")


def test_figures() -> None:
    rows = (row("a", " Red"), row("a", "red."), row("b", "red", "shape"), row("b", "blue"))
    found = Trial(rows)
    assert [row.right for row in rows] == [True, False, True, False]
    assert found.accuracy == 0.5
    assert found.by_type() == {"color": (1, 3), "shape": (1, 1)}
    assert found.interval() == (0.5, 0.5), "half of each video: whichever are drawn"


def test_the_interval_is_over_videos() -> None:
    """Ten questions about a video, all right or all wrong, are no more evidence than one."""
    many = Trial(tuple(row(str(video), "red" if video % 2 else "blue") for video in range(40) for _ in range(10)))
    few = Trial(many.rows[::10])
    assert many.interval() == few.interval()
    low, high = few.interval()
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 40) ** 0.5, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 40) ** 0.5, abs=0.02)
