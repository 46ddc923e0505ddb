"""Examples from the synthetic world, drawn as they are needed."""

from random import Random
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vococache.errors import InputError
from vococache.model.voco import VoCoModel
from vococache.pipeline.synthetic.clip_templates import BLINK_TEMPLATES
from vococache.pipeline.synthetic.questions import questions
from vococache.pipeline.synthetic.render import PALETTE, as_recorded, frames, strange_palette
from vococache.pipeline.synthetic.scene import LOOKS, make_scene
from vococache.pipeline.training.examples import Example, encode_turns
from vococache.workers.video.whole import as_segments

RECORDED = 0.25  # share of clips that go through a real encoder; the others only get the camera's noise
STRANGE = 0.35  # share of training clips in paints without a name


class WorldExamples(Dataset[Example]):
    """Clip number i of a split, with several questions; the same for the same split and number.

    Splits whose name begins with "train" show more of what takes long to learn and ask nothing whose text alone rules
    a held-out combination out. Some of their clips come in paints without a name, about which they ask nothing with a
    colour in it: so nothing but what is looked at ties a shape to a colour.
    `still`: single pictures, in which nothing moves. `least`, `most`: scenes of so many objects. `blinking`:
    more objects blink, and it is asked when they do, which no test asks.
    """

    def __init__(
        self,
        model: VoCoModel,
        split: str,
        count: int,
        *,
        asked: int,
        still: bool = False,
        least: int = 1,
        most: int = 4,
        blinking: bool = False,
    ) -> None:
        if not 1 <= least <= most <= 4:
            raise InputError(f"no scene has from {least} to {most} objects: expected 1 <= `least` <= `most` <= 4")
        self.prompt, self.tokenizer = model.config.prompt, model.tokenizer
        self.side, self.per_segment = model.config.geometry.size, model.config.frames_per_segment
        self.split, self.count, self.asked, self.still = split, count, asked, still
        self.least, self.most, self.blinking = least, most, blinking

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        seed = f"{self.split} {index}"
        teaching = self.split.startswith("train")
        scene = make_scene(
            seed, still=self.still, least=self.least, most=self.most, teaching=teaching, blinking=self.blinking
        )
        random = Random(f"{seed} questions")
        strange = teaching and random.random() < STRANGE
        more = BLINK_TEMPLATES if self.blinking else ()
        texts = [
            encode_turns(self.tokenizer, self.prompt, [(question.text, question.answer)])
            for question in questions(scene, self.asked, random, teaching=teaching, colours=not strange, more=more)
        ]
        palette = strange_palette(random) if strange else PALETTE
        show: Any = as_recorded if random.random() < RECORDED else frames
        pictures: np.ndarray = show(scene, (0.0,) if self.still else LOOKS, self.side, palette)
        return Example(texts, frames=as_segments(list(pictures), self.per_segment))
