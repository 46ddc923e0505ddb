"""Where an object is at a moment, and how it looks then: dense supervision for training, beside the questions.

An answer of a word tells a model little about what to keep of a clip; this one tells it places, and what changes when.
"""

from random import Random

from vococache.pipeline.synthetic.scene import LOOKS, RADII, Scene, Thing

GRID = 10  # places along a side


def state(thing: Thing, time: float) -> str:
    """Column and row (0 to 9) of an object's middle, its colour and size; "hidden" where it is not to be seen."""
    if not thing.visible(time):
        return "hidden"
    column, row = (min(GRID - 1, max(0, int(GRID * at))) for at in thing.centre(time))
    middle = sum(RADII.values()) / 2
    return f"{column} {row} {thing.colour_at(time)} {'large' if thing.radius(time) > middle else 'small'}"


def states(scene: Scene, count: int, random: Random, *, still: bool = False) -> list[tuple[str, str]]:
    """`count` (question, answer) about objects at the instants at which a clip is looked at; `still`: at the first."""
    found = []
    for _ in range(count):
        thing, look = random.choice(scene.things), 0 if still else random.randrange(len(LOOKS))
        when = "" if still else f" in frame {look + 1}"
        found.append((f"where is the {thing.colour} {thing.shape}{when}?", state(thing, LOOKS[look])))
    return found
