"""Lists of all that a scene shows: dense supervision for training, beside questions that are answered in a word.

A short answer tells a model little about what to keep of a clip; these say what lies where, and what happens where and
when. Each attribute stands with a place, never with another attribute: nothing is learned about which shapes have which
colours, so the combinations that no training clip shows look like others.
"""

from collections.abc import Callable
from random import Random

from vococache.pipeline.synthetic.scene import LOOKS, Scene, Thing

GRID = 10  # places along a side


def place(thing: Thing, time: float) -> str:
    """Column and row of an object's middle, 0 to 9."""
    return " ".join(str(min(GRID - 1, max(0, int(GRID * at)))) for at in thing.centre(time))


def look_after(time: float) -> str:
    """The number of the first instant at which a clip is looked at from `time` on."""
    return str(next(number for number, look in enumerate(LOOKS) if look >= time))


def deed(thing: Thing) -> str:
    """What an object does, whereto and when."""
    if thing.legs:
        ways = " ".join(leg.direction for leg in thing.legs)
        return " ".join(filter(None, ("moves", ways, thing.speed, "to", place(thing, LOOKS[-1]))))
    if thing.hidden:
        return " ".join(("blinks", *(look_after(start) for start, _ in thing.hidden)))
    return "stays" if thing.action == "nothing" else f"{thing.action} {look_after(thing.at)}"


# Question: is it one about clips alone, and what of an object it lists.
INVENTORIES: dict[str, tuple[bool, Callable[[Thing], str]]] = {
    "which shapes are where?": (False, lambda thing: thing.shape),
    "which colors are where?": (False, lambda thing: thing.colour),
    "which sizes are where?": (False, lambda thing: thing.size),
    "which colors are where at the end?": (True, lambda thing: thing.colour_at(LOOKS[-1])),
    "what happens where?": (True, deed),
}


def inventories(scene: Scene, count: int, random: Random) -> list[tuple[str, str]]:
    """Up to `count` different (question, answer), objects from the top down by their places at the start."""
    still = not scene.event and all(thing.action == "nothing" for thing in scene.things)
    fitting = [question for question, (of_clips, _) in INVENTORIES.items() if not (still and of_clips)]
    things = sorted(scene.things, key=lambda thing: place(thing, 0.0)[::-1])
    return [
        (question, ", ".join(f"{place(thing, 0.0)} {INVENTORIES[question][1](thing)}" for thing in things))
        for question in random.sample(fitting, min(count, len(fitting)))
    ]
