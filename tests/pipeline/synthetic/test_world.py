"""The synthetic world: its scenes, the truth of its answers (against the pixels), its balance, its video files."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from tests import eyes
from tests.eyes import Seen

from vococache.pipeline.synthetic.clip_templates import BLINK_TEMPLATES, CLIP_TEMPLATES
from vococache.pipeline.synthetic.picture_templates import PICTURE_TEMPLATES
from vococache.pipeline.synthetic.questions import Question, all_questions, questions
from vococache.pipeline.synthetic.render import FPS, SIDE, as_recorded, contact_sheet, decoded, frames, write_clip
from vococache.pipeline.synthetic.scene import COLOURS, LOOKS, SECONDS, SHAPES, Scene, make_scene, split_scenes
from vococache.pipeline.synthetic.template import NUMBERS

TWO_WAYS = ("yes no", "left right", "top bottom", "above below", "up down", "small large", "slowly quickly")
TWO_WAYS += ("grow shrink", "appear disappear", "bright dark")


def scenes(split: str, count: int) -> list[Scene]:
    return list(split_scenes(split, count).values())


def posed(split: str, count: int, asked: int = 6) -> Iterator[Question]:
    for scene in scenes(split, count):
        yield from questions(scene, asked, Random(f"{scene.seed} questions"))


# ---- scenes ---------------------------------------------------------------------------------------------


def digest() -> str:
    """Of a few scenes, their questions and their pictures."""
    made = scenes("test", 20) + scenes("compositional", 5) + [make_scene("a", still=True)]
    asked = [list(all_questions(scene, Random(1))) for scene in made]
    pictures = [frames(scene, LOOKS, 48).tobytes() for scene in made]
    return hashlib.sha256(repr((made, asked, pictures)).encode()).hexdigest()


def test_a_seed_makes_the_same_in_every_process() -> None:
    code = "from tests.pipeline.synthetic import test_world; print(test_world.digest())"
    for salt in ("1", "2"):  # of Python's hashes, and so of the order of its sets
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(("src", "."))}
        command = [sys.executable, "-c", code]
        assert subprocess.check_output(command, text=True, env=environment).strip() == digest()


def test_objects_stay_inside_apart_and_different() -> None:
    for scene in scenes("test", 400):
        names = [(colour, thing.shape) for thing in scene.things for colour in thing.colours()]
        assert len(set(names)) == len(names), scene.seed
        for time in np.arange(0, SECONDS, 1 / FPS):
            boxes = []
            for thing in scene.things:
                (x, y), r = thing.centre(time), thing.radius(time)
                assert min(x, y) - r > 0, scene.seed
                assert max(x, y) + r < 1, scene.seed
                boxes.append((x, y, r, thing))
            for (x, y, r, one), (a, b, s, two) in combinations(boxes, 2):
                if not (scene.event == "collision" and one.role and two.role):  # those two are to touch
                    assert max(abs(x - a), abs(y - b)) > r + s, scene.seed


def test_training_shows_no_held_out_combination_and_the_compositional_split_always_does() -> None:
    assert not any(scene.held_out() for split in ("train", "test") for scene in scenes(split, 1500))
    for scene in scenes("compositional", 150):
        held = [thing for thing in scene.things if thing.held_out()]
        assert held, scene.seed
        told = {word for thing in held for word in (thing.shape, *thing.colours())}
        for question in questions(scene, 6, Random(scene.seed)):
            words = set(re.findall(r"\w+", question.text))
            if question.type not in ("existence", "count") and words & {*COLOURS, *SHAPES}:
                assert told & (words | {question.answer}), question


def test_a_still_scene_never_changes() -> None:
    for index in range(50):
        scene = make_scene(f"picture {index}", still=True)
        assert {thing.action for thing in scene.things} == {"nothing"}
        asked = {question.template for question in all_questions(scene, Random(index))}
        assert asked
        assert asked <= {template.name for template in PICTURE_TEMPLATES}


# ---- answers against the pixels -------------------------------------------------------------------------


class Witness:
    """Answers questions from what was measured in the pixels, and from the question's own words."""

    def __init__(self, things: list[Seen], pictures: eyes.Pixels) -> None:
        self.things, self.pictures = things, pictures

    def named(self, text: str) -> list[Seen]:
        """The objects that a question names, in its order. Fails where a name fits several or none."""
        found = []
        pattern = rf"the (?:({'|'.join(COLOURS)}) )?(object|thing|{'|'.join(SHAPES)})\b"
        for colour, shape in re.findall(pattern, text):
            fitting = [
                thing
                for thing in self.things
                if (not colour or colour in thing.colours) and (shape in ("object", "thing") or shape == thing.shape)
            ]
            (thing,) = fitting
            found.append(thing)
        return found

    def events(self) -> list[Seen]:
        deeds = ("appears", "disappears", "grows", "shrinks", "changes color")
        return sorted((thing for thing in self.things if thing.deed in deeds), key=lambda thing: thing.when)

    def the_one(self, test: Callable[[Seen], bool]) -> Seen:
        (thing,) = (thing for thing in self.things if test(thing))
        return thing

    def answer(self, question: Question) -> str:
        answer = getattr(self, question.template)(question.text)
        return answer if isinstance(answer, str) else "yes" if answer else "no"

    # -- one method a template; a bool stands for yes and no

    def exists(self, text: str) -> bool:
        return any(f"a {c} {thing.shape}" in text for thing in self.things for c in thing.colours if c)

    def exists_shape(self, text: str) -> bool:
        return any(f"a {thing.shape}?" in text for thing in self.things)

    def colour_of(self, text: str) -> str:
        return self.named(text)[0].colour

    def apart(self, text: str) -> Seen:
        axis = 0 if "left" in text or "right" in text else 1
        first, last = sorted(self.things, key=lambda thing: thing.centre[axis])
        return first if "left" in text or "top" in text else last

    def colour_beside(self, text: str) -> str:
        return self.apart(text).colour

    def shape_beside(self, text: str) -> str:
        return self.apart(text).shape

    def shape_of(self, text: str) -> str:
        return self.the_one(lambda thing: any(c and c in text for c in thing.colours)).shape

    def count_all(self, text: str) -> str:
        return NUMBERS[len(self.things)]

    def count_shape(self, text: str) -> str:
        return NUMBERS[sum(f"{thing.shape}s" in text or f"{thing.shape}es" in text for thing in self.things)]

    def count_colour(self, text: str) -> str:
        return NUMBERS[sum(thing.colour in text for thing in self.things)]

    def side_of(self, text: str) -> str:
        return "left" if self.named(text)[0].centre[0] < SIDE / 2 else "right"

    def height_of(self, text: str) -> str:
        return "top" if self.named(text)[0].centre[1] < SIDE / 2 else "bottom"

    def beside(self, text: str) -> str:
        one, two = self.named(text)
        return "left" if one.centre[0] < two.centre[0] else "right"

    def above(self, text: str) -> str:
        one, two = self.named(text)
        return "above" if one.centre[1] < two.centre[1] else "below"

    def size_of(self, text: str) -> str:
        return "small" if np.nanmean(self.named(text)[0].widths) < 0.21 * SIDE else "large"

    def larger(self, text: str) -> str:
        small, large = sorted(self.named(text), key=lambda thing: float(np.nanmean(thing.widths)))
        return (large if "larger" in text else small).shape

    def pattern(self, text: str) -> str:
        return eyes.ground(self.pictures, self.things)[0]

    def brightness(self, text: str) -> str:
        return eyes.ground(self.pictures, self.things)[1]

    def direction(self, text: str) -> str:
        return self.named(text)[0].way()

    way = direction

    def moves_there(self, text: str) -> bool:
        return self.named(text)[0].way() in re.split(r"\W", text.split("mov")[1])

    def _moving_there(self, text: str) -> Seen:
        words = re.split(r"\W", text)
        return self.the_one(lambda thing: thing.moves and bool({thing.way(0, 3), thing.way(4, 7)} & set(words)))

    def colour_moving(self, text: str) -> str:
        return self._moving_there(text).colour

    def shape_moving(self, text: str) -> str:
        return self._moving_there(text).shape

    def side_then(self, text: str) -> str:
        x, y = self.named(text)[0].centres[-1 if "end" in text.split()[-1] else 0]
        if "left" in text:
            return "left" if x < SIDE / 2 else "right"
        return "top" if y < SIDE / 2 else "bottom"

    def moves(self, text: str) -> bool:
        return self.named(text)[0].moves

    def speed(self, text: str) -> str:
        return "slowly" if self.named(text)[0].path < 0.37 * SIDE else "quickly"

    def only_moving(self, text: str) -> str:
        thing = self.the_one(lambda thing: thing.moves)
        return thing.colour if "color" in text else thing.shape

    def count_moving(self, text: str) -> str:
        return NUMBERS[sum(thing.moves for thing in self.things)]

    def what_happens(self, text: str) -> str:
        return self.named(text)[0].deed

    def new_colour(self, text: str) -> str:
        return self.named(text)[0].colours[-1]

    def old_colour(self, text: str) -> str:
        return self.named(text)[0].colours[0]

    def changing_shape(self, text: str) -> str:
        return self.the_one(lambda thing: f" {thing.deed}?" in text).shape

    def changing_colour(self, text: str) -> str:
        return self.the_one(lambda thing: f" {thing.deed}?" in text).colour

    def early_or_late(self, text: str) -> str:
        return "early" if self.named(text)[0].when < 4 else "late"

    def which_change(self, text: str) -> str:
        return self.named(text)[0].deed.removesuffix("s")

    def happens_first(self, text: str) -> str:
        return self.events()[0 if "first" in text else -1].deed

    def shape_first(self, text: str) -> str:
        return self.events()[0 if "first" in text else -1].shape

    def colour_first(self, text: str) -> str:
        same = [thing for thing in self.events() if f" {thing.deed} " in text]
        return same[0 if "first" in text else -1].colour

    def shape_early(self, text: str) -> str:
        (thing,) = (thing for thing in self.events() if (thing.when < 4) == ("early" in text))
        return thing.shape

    def earlier(self, text: str) -> str:
        one, two = self.named(text)
        return "earlier" if one.when < two.when else "later"

    def direction_then(self, text: str) -> str:
        early = "beginning" in text or "first" in text
        return self.named(text)[0].way(*((0, 3) if early else (4, 7)))

    def times_blinking(self, text: str) -> str:
        there = self.named(text)[0].there
        return NUMBERS[sum(a and not b for a, b in pairwise(there))]

    def blinks_early(self, text: str) -> bool:
        return not all(self.named(text)[0].there[:3])

    def blinks_midway(self, text: str) -> bool:
        return not all(self.named(text)[0].there[3:5])

    def blinks_late(self, text: str) -> bool:
        return not all(self.named(text)[0].there[5:])

    def collide(self, text: str) -> bool:
        one, two = self.named(text)
        return _gap(one, two, -1) < min(SIDE / 16, _gap(one, two, 0))

    def hits_what(self, text: str) -> str:
        mover = self.named(text)[0]
        return min((t for t in self.things if t is not mover), key=lambda t: _gap(mover, t, -1)).shape

    def overtakes(self, text: str) -> bool:
        behind, ahead = self.named(text)
        assert self.lead(ahead, behind, 0) > 0, "it starts behind"
        return self.lead(ahead, behind, -1) < 0

    def lead(self, one: Seen, two: Seen, look: int) -> float:
        """By how much one of two that move the same way is in front."""
        axis, sign = (0, 1) if one.way() == "right" else (0, -1) if one.way() == "left" else (1, 0)
        sign = sign or (1 if one.way() == "down" else -1)
        return float(sign * (one.centres[look] - two.centres[look])[axis])

    def ahead_then(self, text: str) -> str:
        one, two = self.named(text)
        return "ahead" if self.lead(one, two, -1 if "end" in text else 0) > 0 else "behind"

    def faster(self, text: str) -> str:
        one, two = self.named(text)
        return "faster" if one.path > two.path else "slower"


def _gap(one: Seen, two: Seen, at: int) -> float:
    """Pixels between the nearest points of two objects at a look; infinite where one is not there."""
    a, b = np.argwhere(one.masks[at]), np.argwhere(two.masks[at])
    return min((float(np.hypot(*(b - point).T).min()) for point in a[::5]), default=np.inf) if len(b) else np.inf


def test_answers_are_what_the_pixels_show() -> None:
    checked: Counter[str] = Counter()
    misread = 0
    for split, count in (("test", 420), ("compositional", 60)):
        for scene in scenes(split, count):
            colours = [colour for thing in scene.things for colour in thing.colours()]
            if len(set(colours)) < len(colours):
                continue  # the eyes tell objects apart by colour
            pictures = frames(scene, LOOKS, SIDE)
            things = eyes.look(pictures)
            # What hides at the end and comes back as another colour at the same place cannot be told from a change.
            assert len(things) == len(scene.things), scene.seed
            # Rarely the eyes take a small square for a circle; such scenes are left out, and counted.
            if sorted(thing.shape for thing in things) != sorted(thing.shape for thing in scene.things):
                misread += 1
                continue
            witness = Witness(things, pictures)
            for question in all_questions(scene, Random(scene.seed), more=BLINK_TEMPLATES):
                assert witness.answer(question) == question.answer, (scene.seed, question)
                checked[question.template] += 1
    names = {template.name for template in (*PICTURE_TEMPLATES, *CLIP_TEMPLATES, *BLINK_TEMPLATES)}
    assert set(checked) >= names - {"colour_first"}, names - set(checked)
    assert sum(checked.values()) > 3000
    assert misread <= 3


# ---- what questions give away ---------------------------------------------------------------------------


def test_templates_are_many_and_have_paraphrases() -> None:
    """A paraphrase: what is left of a question when the names of objects are taken out."""
    wordings = defaultdict(set)
    words = "|".join((*COLOURS, *(f"{shape}(?:e?s)?" for shape in SHAPES), "object", "thing"))
    for question in posed("test", 1500, asked=40):
        wordings[question.template].add(re.sub(rf"\b(?:{words})\b", "_", question.text))
    assert len(wordings) >= 25
    assert sum(map(len, wordings.values())) >= 2 * len(wordings)
    assert {name for name, texts in wordings.items() if len(texts) < 2} <= {"way", "which_change"}
    assert all(len(q.answer.split()) <= 2 and q.answer == q.answer.lower() for q in posed("test", 200))


def test_answers_to_two_way_questions_are_balanced() -> None:
    pair_of = {word: pair for pair in TWO_WAYS for word in pair.split()}
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in posed("train", 4000):
        pair = pair_of.get(question.answer)
        if pair is not None and (pair == "yes no" or " or " in question.text):
            answers[question.template, pair][question.answer] += 1
    assert len(answers) > 15
    for (template, pair), counts in answers.items():
        # Objects that meet are small for want of room. Squares never go up in training, so of two that go one way
        # together fewer go up: to be mended when the world next changes with its model.
        most = 0.68 if template in ("size_of", "way") else 0.62 if counts.total() < 500 else 0.6
        assert max(counts.values()) <= most * counts.total(), (template, pair, counts)


def test_a_question_alone_does_not_tell_its_answer() -> None:
    """The best answer to each text that was seen before, of other clips."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in posed("train", 6000):
        answers[question.text][question.answer] += 1
        answers[""][question.answer] += 1
    right = [answers.get(q.text, answers[""]).most_common(1)[0][0] == q.answer for q in posed("test", 800)]
    assert np.mean(right) <= 0.5


def test_teaching_asks_nothing_whose_text_rules_a_held_out_combination_out() -> None:
    """What is never asked there is what training cannot answer with the held-out half; all else is still asked."""

    def asked(*, teaching: bool) -> set[Question]:
        many = (questions(make_scene(f"train {i}"), 40, Random(i), teaching=teaching) for i in range(1500))
        return {question for found in many for question in found}

    taught, all_of_them = asked(teaching=True), asked(teaching=False)
    texts = {question.text for question in taught}
    left_out = {question.text for question in all_of_them} - texts
    assert {"what shape is the yellow object?", "what is the red thing?", "what shape blinks?"} <= left_out
    assert {"what does the triangle do?", "what happens to the red ring?"} <= left_out
    assert {"what shape is the green object?", "which color is the circle?", "what shape appears?"} <= texts
    assert {"what does the cross do?", "is there a yellow triangle?", "how many yellow objects are there?"} <= texts
    assert {question.template for question in taught} == {question.template for question in all_of_them}


def test_where_counting_is_taught_more_blinks() -> None:
    """Of a training's clips; and nothing that blinks is a held-out combination there either."""
    usual, more = (
        [make_scene(f"train {i}", teaching=True, blinking=blinking) for i in range(300)] for blinking in (False, True)
    )
    one, other = (sum(thing.action == "blinks" for scene in made for thing in scene.things) for made in (usual, more))
    assert other > 2 * one
    assert not any(scene.held_out() for scene in more)


def test_scenes_of_so_many_objects() -> None:
    for least, most in ((1, 1), (2, 3), (4, 4)):
        sizes = {len(make_scene(f"train {i}", least=least, most=most).things) for i in range(30)}
        assert sizes == {*range(least, most + 1)}


# ---- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_files_decode_to_nearly_what_was_drawn(suffix: str, tmp_path: Path) -> None:
    for index, scene in enumerate(scenes("test", 4)):
        path = write_clip(scene, tmp_path / f"{index}{suffix}")
        drawn = frames(scene, [i / FPS for i in range(int(SECONDS * FPS))], SIDE)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (container.format.name, stream.codec_context.name) == (
                {".mp4": "mov,mp4,m4a,3gp,3g2,mj2", ".avi": "avi", ".mkv": "matroska,webm"}[suffix],
                "h264",
            )
            assert container.duration == SECONDS * 1_000_000
        shown = np.stack(list(decoded(str(path))))
        assert shown.shape == drawn.shape
        away = abs(shown.astype(int) - drawn).mean(axis=(1, 2, 3))
        assert away.min() > 0.3, "an encoder leaves its marks"
        assert away.max() < 8


def test_a_recording_in_memory_has_the_artefacts_of_a_file() -> None:
    scene = make_scene("test 3")
    away = abs(as_recorded(scene, LOOKS, SIDE).astype(int) - frames(scene, LOOKS, SIDE)).mean()
    assert 0.3 < away < 8


def test_a_contact_sheet_has_one_row_a_clip(tmp_path: Path) -> None:
    from PIL import Image

    rows = [frames(scene, LOOKS, 32) for scene in scenes("test", 3)]
    with Image.open(contact_sheet(rows, tmp_path / "sheet.png")) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 36 + 4, 8 * 36 + 4, 3)
    np.testing.assert_array_equal(pixels[4 + 36 : 4 + 36 + 32, 4 + 36 * 7 : 4 + 36 * 7 + 32], rows[1][7])
