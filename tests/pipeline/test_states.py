"""What is said of an object at a moment is what the frame of that moment shows."""

import re
from random import Random

from vococache.pipeline.synthetic.render import PALETTE, frames
from vococache.pipeline.synthetic.scene import LOOKS, make_scene
from vococache.pipeline.synthetic.states import states


def test_the_frames_show_what_is_said() -> None:
    said = {"hidden": 0, "there": 0}
    for number in range(200):
        scene = make_scene(f"states {number}", most=1)
        (thing,) = scene.things
        if thing.colours() & {"white", "black"}:
            continue  # the ground may be like them
        pictures = frames(scene, LOOKS, 100).astype(int)
        for question, answer in states(scene, 4, Random(number)):
            asked = re.fullmatch(rf"where is the {thing.colour} {thing.shape} in frame ([1-8])\?", question)
            assert asked is not None
            colour = thing.colour if answer == "hidden" else answer.split()[2]
            near = (abs(pictures[int(asked[1]) - 1] - PALETTE[colour]) < 40).all(-1)
            rows, columns = near.nonzero()
            if answer == "hidden":
                said["hidden"] += 1
                assert len(rows) == 0, question
                continue
            said["there"] += 1
            column, row, _, size = answer.split()
            assert abs((columns.min() + columns.max()) / 20 - int(column) - 0.5) < 0.7, question
            if thing.shape != "triangle":  # whose middle is not that of its height
                assert abs((rows.min() + rows.max()) / 20 - int(row) - 0.5) < 0.7, question
            assert (columns.max() - columns.min() > 20) == (size == "large"), question
    assert min(said.values()) > 20


def test_pictures_are_asked_nothing_about_time() -> None:
    scene = make_scene("states", still=True)
    assert all("frame" not in question for question, _ in states(scene, 9, Random(0), still=True))
    assert len(states(scene, 9, Random(0), still=True)) == 9
