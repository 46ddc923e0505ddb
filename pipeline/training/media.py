"""Conversations as training examples, and the report of those that cannot be trained on.

A row is never replaced by another: the loss is over what the data hold, and what they lack has a name.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from vococache.errors import ContextLimitError, InputError, VideoError
from vococache.model.images import Frame, FrameGeometry
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.conversations import Conversation
from vococache.pipeline.training.examples import Example, Text, encode_turns
from vococache.workers.decode import joined
from vococache.workers.decoder import Decoder, DecoderName, available_decoders
from vococache.workers.sampling import Sampling

# Those that Pillow reads by itself: for others it starts programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_SIDE = 16384  # pixels: an image is padded to a square, which then takes 768 MiB

Cause = Literal["empty", "missing", "broken", "too long"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not trained on. `row`: its place among the conversations; `medium`: its file, "" where text."""

    row: int
    id: str
    medium: str
    cause: Cause
    reason: str

    def to_line(self) -> bytes:
        """A line of JSON, shorter than 4096 bytes: several processes may append such lines to one file."""
        short = asdict(self) | {"id": self.id[:100], "medium": self.medium[-300:], "reason": self.reason[:200]}
        return json.dumps(short, ensure_ascii=False).encode(errors="replace") + b"\n"


@dataclass(frozen=True, slots=True)
class MediaReport:
    """What was left out, by cause: how many rows, and the reason for each file (each id, where the row is text)."""

    counts: dict[str, int]
    names: dict[str, dict[str, str]]

    @classmethod
    def of(cls, left_out: Iterable[LeftOut]) -> "MediaReport":
        """Each row counts once, whichever process met it in whichever epoch."""
        rows = {(item.cause, item.row): item for item in left_out}.values()
        names: dict[str, dict[str, str]] = {}
        for item in rows:
            names.setdefault(item.cause, {})[item.medium or item.id] = item.reason
        return cls(dict(Counter(item.cause for item in rows)), names)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {cause} ({', '.join(list(self.names[cause])[:3])}{', ...' if len(self.names[cause]) > 3 else ''})"
            for cause, count in self.counts.items()
        )


def read_report(path: Path) -> MediaReport:
    """All that was appended to a `report.jsonl`, also by earlier runs in the same folder; nothing if it is absent."""
    if not path.exists():
        return MediaReport({}, {})
    return MediaReport.of(LeftOut(**json.loads(line)) for line in path.read_bytes().splitlines())


class ConversationExamples(Dataset[Example]):
    """Conversations with their frames, decoded as they are needed; the frames are those that ingest would take.

    `sampling` chooses a video's frames (`Sampling(num_frames=frames_per_segment)` gives one segment). A video that has
    more than `max_frames` of them gives `max_frames`, spread evenly. `report`: the file to which rows that cannot be
    trained on are appended. Call `check_media` before training.
    """

    def __init__(
        self,
        model: VoCoModel,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        report: Path,
        *,
        max_frames: int | None = None,
    ) -> None:
        self.config, self.tokenizer = model.config, model.tokenizer
        self.conversations = conversations
        self.sampling, self.max_frames = sampling, max_frames
        self.report = report
        self._rows = list(range(len(conversations)))
        self._decoders: dict[int, Decoder] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """A row; one that cannot be trained on has no frames and no labels, so that no loss comes from it."""
        row = self.conversations[self._rows[index]]
        text = encode_turns(self.tokenizer, self.config.prompt, row.turns)
        try:
            frames = self._frames(row)
            self._check_length(text, frames)
        except (VideoError, ContextLimitError) as error:
            cause: Cause = "broken" if isinstance(error, VideoError) else "too long"
            self._record([self._left_out(self._rows[index], cause, str(error))])
            return Example([Text(text.ids[:1], [IGNORED_LABEL])])
        return Example([text], frames=frames)

    def check_media(self) -> MediaReport:
        """Leave out the rows without their file, or with an empty question or answer; returns and records them.

        Raises `InputError` where none is left.
        """
        found = []
        for number in self._rows:
            row = self.conversations[number]
            if not all(question and answer for question, answer in row.turns):
                found.append(self._left_out(number, "empty", "an empty question or answer"))
            elif row.medium is not None and not row.medium.is_file():
                found.append(self._left_out(number, "missing", "no such file"))
        self._record(found)
        gone = {item.row for item in found}
        self._rows = [number for number in self._rows if number not in gone]
        report = MediaReport.of(found)
        if not self._rows:
            raise InputError(f"none of {len(self.conversations)} rows can be trained on: {report}")
        return report

    def close(self) -> None:
        """End this process's decoder child now; otherwise it ends with this object or its process."""
        decoder = self._decoders.pop(os.getpid(), None)
        if decoder is not None:
            decoder.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoders": {}}

    @property
    def _decoder(self) -> Decoder:
        """This process's own: a child and its pipes cannot be shared across a fork."""
        # One that a fork copied stays in the dictionary, untouched: its child belongs to another process.
        if os.getpid() not in self._decoders:
            decoder = self._decoders[os.getpid()] = Decoder()
            Finalize(self, decoder.close, exitpriority=0)  # unlike atexit, in a DataLoader's workers too
        return self._decoders[os.getpid()]

    def _frames(self, row: Conversation) -> np.ndarray | None:
        """uint8 [S, F, H, W, 3], None for text; the last segment is filled up with its last frame, as in ingest."""
        if row.medium is None:
            return None
        geometry, per_segment = self.config.geometry, self.config.frames_per_segment
        pictures = [read_image(row.medium, geometry)] if row.kind == "image" else self._video(row.medium)
        pictures += [pictures[-1]] * (-len(pictures) % per_segment)
        return np.stack(pictures).reshape(-1, per_segment, *pictures[0].shape)

    def _video(self, path: Path) -> list[Frame]:
        """A video's frames, by the first decoder that can. Raises `VideoError` with what each found wrong."""
        reasons: dict[str, str] = {}
        for decoder in available_decoders():
            try:
                return self._decoded(path, decoder)
            except VideoError as error:
                reasons[decoder] = str(error)
        raise VideoError(joined(reasons))

    def _decoded(self, path: Path, decoder: DecoderName) -> list[Frame]:
        """The frames of `sampling`; `max_frames` spread evenly where these are more, by the headers or in fact."""
        if self.max_frames is None:
            return self._taken(path, decoder, self.sampling, None)
        claimed = self.sampling.expected_frames(self._decoder.probe(str(path)).duration)
        if claimed is None or claimed <= self.max_frames:
            frames = self._taken(path, decoder, self.sampling, self.max_frames + 1)
            if len(frames) <= self.max_frames:
                return frames
        return self._taken(path, decoder, Sampling(num_frames=self.max_frames), None)

    def _taken(self, path: Path, decoder: DecoderName, sampling: Sampling, limit: int | None) -> list[Frame]:
        frames = self._decoder.open(str(path), sampling, self.config.geometry, decoder)
        pictures = [picture for _, picture in islice(frames, limit)]
        if not pictures:
            raise VideoError("no frames")
        return pictures

    def _check_length(self, text: Text, frames: np.ndarray | None) -> None:
        """Raise `ContextLimitError` for a row that the model has no positions for."""
        cached = 0 if frames is None else len(frames) * self.config.num_voco_tokens
        if cached + len(text.ids) > self.config.max_positions:
            raise ContextLimitError(
                f"a cache of {cached} tokens and a text of {len(text.ids)} need {cached + len(text.ids)} positions,"
                f" the model has {self.config.max_positions}"
            )

    def _left_out(self, number: int, cause: Cause, reason: str) -> LeftOut:
        row = self.conversations[number]
        return LeftOut(number, row.id, "" if row.medium is None else str(row.medium), cause, reason)

    def _record(self, left_out: Sequence[LeftOut]) -> None:
        with self.report.open("ab", buffering=0) as file:  # unbuffered: each line is one write
            for item in left_out:
                file.write(item.to_line())


def read_image(path: Path, geometry: FrameGeometry) -> Frame:
    """An image file, upright, shaped as a video's frames are: [size, size, 3]. Raises `VideoError`."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if max(image.size) > MAX_SIDE:
                raise VideoError(f"expected at most {MAX_SIDE} pixels a side, found {image.size}")
            picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except VideoError:
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise VideoError(f"{type(error).__name__}: {error}".splitlines()[0]) from None
    return geometry.apply(picture)
