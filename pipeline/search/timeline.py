"""Evidence as a picture: of each answer a timeline of what was read, what it rests on, and pictures of that."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vococache.errors import InputError
from vococache.pipeline.ask import AskAnswer
from vococache.pipeline.originals import source_file
from vococache.storage import StoreReader
from vococache.workers.spans import Evidence

WIDTH = 960  # of the sheet, in pixels
SIDE = 120  # of a picture
MARGIN, LINE, BAR = 12, 16, 18
PICTURES = 2  # of each span
READ, RESTS, EMPTY = (170, 190, 220), (214, 60, 40), (232, 232, 232)


def draw_evidence(store: StoreReader, answers: Sequence[AskAnswer], path: Path) -> None:
    """Draw the answers one below the other into an image file. Raises `InputError` where it cannot be written.

    Pictures come from the videos' files, as far as these are at hand.
    """
    strips = [_strip(store, answer) for answer in answers]
    sheet = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    try:
        sheet.save(path)
    except (ValueError, OSError) as error:  # Pillow's, of a suffix that it does not know
        raise InputError(f"--evidence {path}: cannot be written: {error}") from None


def _strip(store: StoreReader, answer: AskAnswer) -> Image.Image:
    """One answer: its words, a bar for each video that its evidence lies in, pictures of the spans."""
    videos = list(dict.fromkeys(span.video for span in answer.evidence))
    height = 2 * MARGIN + 2 * LINE + len(videos) * (LINE + BAR + MARGIN) + (SIDE + LINE if answer.evidence else 0)
    strip = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, MARGIN), _plain(answer.question), fill="black")
    draw.text((MARGIN, MARGIN + LINE), _plain(answer.answer), fill=RESTS)
    top = MARGIN + 2 * LINE
    for video in videos:
        duration = max(1e-6, store.info(video).duration or 0.0)

        def bar(start: float, end: float, colour: tuple[int, int, int], top: int, of: float = duration) -> None:
            left, right = (MARGIN + min(1.0, seconds / of) * (WIDTH - 2 * MARGIN) for seconds in (start, end))
            draw.rectangle((left, top + LINE, max(left + 1, right), top + LINE + BAR), fill=colour)

        draw.text((MARGIN, top), f"{_plain(video)}  0 to {duration:.0f} s", fill="black")
        bar(0.0, duration, EMPTY, top)
        for span in answer.segments:
            if span.video == video:
                bar(span.start_time, span.end_time, READ, top)
        for rest in answer.evidence:
            if rest.video == video:
                bar(rest.start, rest.end, RESTS, top)
        top += LINE + BAR + MARGIN
    left = MARGIN
    for rest in answer.evidence:
        for seconds, picture in _pictures(store, rest):
            if left + SIDE > WIDTH:
                break
            strip.paste(Image.fromarray(picture), (left, top))
            draw.text((left, top + SIDE + 2), f"{seconds:.1f} s", fill="black")
            left += SIDE + MARGIN // 2
    return strip


def _plain(text: str) -> str:
    """What Pillow's own font can draw."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _pictures(store: StoreReader, span: Evidence) -> list[tuple[float, np.ndarray]]:
    """Frames of a span, evenly spread: the first one at or behind each time."""
    import av

    from vococache.workers.video.container import open_local

    source = source_file(store.info(span.video))
    if source is None:
        return []
    wanted = [span.start + (span.end - span.start) * (2 * n + 1) / (2 * PICTURES) for n in range(PICTURES)]
    found = []
    try:
        with open_local(str(source), {}) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                return []
            base = float(stream.time_base or 1)
            first = (stream.start_time or 0) * base
            for seconds in wanted:
                container.seek(int((first + seconds) / base), stream=stream)
                for frame in container.decode(stream):
                    if (frame.time or 0.0) >= first + seconds:
                        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                        picture.thumbnail((SIDE, SIDE))
                        square = Image.new("RGB", (SIDE, SIDE), "black")
                        square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
                        found.append((seconds, np.asarray(square)))
                        break
    except av.FFmpegError:
        return found
    return found
