"""Scenes: what a synthetic clip shows, as a function of time.

A scene is drawn from a seed. Its square picture has the coordinates 0..1, y pointing down; time is in seconds.
Everything that a question can ask about lies clear of its alternatives: events fall between the instants at
which a clip is looked at (`LOOKS`), and places, speeds and sizes keep apart.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

SECONDS = 4.0
LOOKS = tuple(0.5 * look for look in range(8))  # two frames a second
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
RADII = {"small": 0.09, "large": 0.15}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DISTANCES = {"slowly": 0.22, "quickly": 0.55}  # of a whole clip
BACKGROUNDS = ("plain", "striped", "checkered")
ACTIONS = {
    "nothing": 20, "moves": 24, "turns": 12, "appears": 8, "disappears": 8, "grows": 7, "shrinks": 7,
    "changes color": 10, "blinks": 22,
}  # fmt: skip
# What happens between two objects; in a sequence, two of them change one after the other.
MEETINGS = {"": 48, "sequence": 24, "collision": 8, "miss": 7, "overtaking": 7, "pursuit": 6}
# In training, more of what takes long to learn.
TEACHING_ACTIONS = ACTIONS | {"blinks": 40}
TEACHING_MEETINGS = MEETINGS | {"sequence": 64, "overtaking": 11, "pursuit": 10}
# Where counting is learned, which takes longest: three times as many objects that blink.
BLINKING_ACTIONS = TEACHING_ACTIONS | {"blinks": 100}
BLINKING_MEETINGS = TEACHING_MEETINGS | {"": 100}
EVENTS = ("appears", "disappears", "grows", "shrinks", "changes color")
# How far a shape reaches along its axes, in radii; a triangle, which does so nowhere, takes no part in collisions.
REACH = {"circle": 0.95, "square": 0.85, "cross": 1.0, "ring": 1.0}
MARGIN = 0.03  # between objects, and to the border

# Combinations that no training clip shows (the compositional split): shape with colour, shape with action.
HELD_OUT_COLOURS = {("circle", "yellow"), ("square", "purple"), ("cross", "red")}
HELD_OUT_ACTIONS = {("triangle", "blinks"), ("ring", "turns")}


@dataclass(frozen=True, slots=True)
class Leg:
    """A straight movement from `start` to `end` seconds by (`dx`, `dy`)."""

    start: float
    end: float
    dx: float
    dy: float

    @property
    def direction(self) -> str:
        if abs(self.dx) > abs(self.dy):
            return "right" if self.dx > 0 else "left"
        return "down" if self.dy > 0 else "up"


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is at the start, and the one thing it does."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    scale: float = 1.0  # of its size's radius
    action: str = "nothing"
    legs: tuple[Leg, ...] = ()
    speed: str = ""
    at: float = 0.0  # when its event happens
    new_colour: str = ""
    hidden: tuple[tuple[float, float], ...] = ()  # while it blinks
    role: str = ""  # "first" or "second" in the scene's event

    @property
    def new_size(self) -> str:
        return {"grows": "large", "shrinks": "small"}.get(self.action, self.size)

    def centre(self, time: float) -> tuple[float, float]:
        """Where it is."""
        x, y = self.x, self.y
        for leg in self.legs:
            done = min(1.0, max(0.0, (time - leg.start) / (leg.end - leg.start)))
            x, y = x + done * leg.dx, y + done * leg.dy
        return x, y

    def radius(self, time: float) -> float:
        """Half its width."""
        done = min(1.0, max(0.0, (time - self.at) / 0.3 + 0.5)) if self.new_size != self.size else 0.0
        return self.scale * ((1 - done) * RADII[self.size] + done * RADII[self.new_size])

    def colour_at(self, time: float) -> str:
        """Its colour."""
        return self.new_colour if self.new_colour and time >= self.at else self.colour

    def visible(self, time: float) -> bool:
        """Is it there?"""
        if self.action == "appears":
            return time >= self.at
        if self.action == "disappears":
            return time < self.at
        return not any(start <= time < end for start, end in self.hidden)

    def colours(self) -> set[str]:
        """All colours that it has in the clip."""
        return {self.colour, self.new_colour} - {""}

    def directions(self) -> set[str]:
        """Where to it ever moves."""
        return {leg.direction for leg in self.legs}

    def held_out(self) -> bool:
        """Does it combine what no training clip combines?"""
        return (self.shape, self.action) in HELD_OUT_ACTIONS or any(
            (self.shape, colour) in HELD_OUT_COLOURS for colour in self.colours()
        )

    def box(self) -> tuple[float, float, float, float]:
        """All the place that it ever takes: left, top, right, bottom."""
        reach = self.scale * max(RADII[self.size], RADII[self.new_size])
        places = [self.centre(0.0), *(self.centre(leg.end) for leg in self.legs)]
        xs, ys = [x for x, _ in places], [y for _, y in places]
        return min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach


@dataclass(frozen=True, slots=True)
class Scene:
    """A ground and the objects on it. `event`: one of `MEETINGS`."""

    things: tuple[Thing, ...]
    background: str
    bright: bool
    event: str
    seed: str

    def held_out(self) -> bool:
        """Does it show a combination of the compositional split?"""
        return any(thing.held_out() for thing in self.things)


def make_scene(
    seed: str,
    *,
    still: bool = False,
    compositional: bool = False,
    least: int = 1,
    most: int = 4,
    teaching: bool = False,
    blinking: bool = False,
) -> Scene:
    """The scene of a seed. `still`: nothing moves or changes (for single images). `least`, `most`: so many objects.

    `compositional`: at least one combination that no other scene has; otherwise none. `teaching`: more of what takes
    long to learn (`TEACHING_ACTIONS`, `TEACHING_MEETINGS`). `blinking`: and of what blinks, more still.
    """
    random = Random(seed)
    actions, meetings = (TEACHING_ACTIONS, TEACHING_MEETINGS) if teaching else (ACTIONS, MEETINGS)
    if blinking:
        actions, meetings = BLINKING_ACTIONS, BLINKING_MEETINGS
    while True:
        scene = _draw(random, seed, {} if still else actions, meetings, compositional, range(least, most + 1))
        if scene is not None:
            return scene


def split_scenes(split: str, count: int) -> dict[str, Scene]:
    """The first `count` scenes of a split by their clips' names, such as "test_0007"; its seed is "test 7".

    Splits whose name begins with "compositional" show combinations that no other split shows.
    """
    return {
        f"{split}_{index:04d}": make_scene(f"{split} {index}", compositional=split.startswith("compositional"))
        for index in range(count)
    }


def _draw(
    random: Random, seed: str, deeds: dict[str, int], meetings: dict[str, int], compositional: bool, numbers: range
) -> Scene | None:
    """A scene, or None where what was drawn does not do. Without `deeds` nothing happens in it."""
    count = random.choices((1, 2, 3, 4), (18, 34, 30, 18))[0]
    event = random.choices([*meetings], [*meetings.values()])[0] if deeds else ""
    if event == "sequence":
        actions = [random.choice(EVENTS) for _ in range(2)] + ["nothing"] * random.randrange(2)
    else:
        actions = [random.choices([*deeds], [*deeds.values()])[0] if deeds else "nothing" for _ in range(count)]
    things = list(_pair(random, event)) if event not in ("", "sequence") else []
    for action in actions[2:] if things else actions:
        for _ in range(20):
            thing = _thing(random, action)
            if _fits(thing, things):
                things.append(thing)
                break
    if len(things) not in numbers or not _names_differ(things) or not _events_apart(things):
        return None
    random.shuffle(things)
    scene = Scene(tuple(things), random.choice(BACKGROUNDS), random.random() < 0.5, event, seed)
    return scene if scene.held_out() == compositional else None


def _thing(random: Random, action: str) -> Thing:
    """An object that does `action`, wherever there is room for it."""
    thing = Thing(
        colour=random.choice(COLOURS),
        shape=random.choice(SHAPES),
        size={"grows": "small", "shrinks": "large"}.get(action) or random.choice(("small", "large")),
        x=0.0, y=0.0, scale=random.uniform(0.94, 1.06), action=action,
    )  # fmt: skip
    if action == "moves":
        speed = random.choice(("slowly", "quickly"))
        dx, dy = DIRECTIONS[random.choice([*DIRECTIONS])]
        far = DISTANCES[speed] * random.uniform(0.9, 1.1)
        thing = replace(thing, legs=(Leg(0.0, LOOKS[-1], far * dx, far * dy),), speed=speed)
    elif action == "turns":
        (ax, ay), (bx, by) = (DIRECTIONS[way] for way in random.sample([*DIRECTIONS], 2))
        far, on = random.uniform(0.26, 0.36), random.uniform(0.26, 0.36)
        thing = replace(thing, legs=(Leg(0.0, 1.75, far * ax, far * ay), Leg(1.75, 3.5, on * bx, on * by)))
    elif action == "blinks":
        looks = random.sample((1, 2), 1) + random.sample((4, 3), 1) + random.sample((5, 6), 1)
        chosen = [looks[0], looks[1] if looks[1] - looks[0] > 1 else 4, 6]
        times = sorted(random.sample(chosen, random.choice((1, 2, 3))))
        thing = replace(thing, hidden=tuple((LOOKS[look] - 0.25, LOOKS[look] + 0.25) for look in times))
    elif action in EVENTS:
        at = random.choice((0.75, 1.25, 1.75, 2.25, 2.75))
        new = random.choice([c for c in COLOURS if c != thing.colour]) if action == "changes color" else ""
        thing = replace(thing, at=at, new_colour=new)
    return _place(random, thing)


def _place(random: Random, thing: Thing) -> Thing:
    """The object somewhere in the picture, as a whole and all the time."""
    left, top, right, bottom = thing.box()
    return replace(
        thing,
        x=random.uniform(MARGIN - left, max(MARGIN - left, 1 - MARGIN - right)),
        y=random.uniform(MARGIN - top, max(MARGIN - top, 1 - MARGIN - bottom)),
    )


def _fits(thing: Thing, others: list[Thing]) -> bool:
    """Is its place free all the time?"""
    left, top, right, bottom = thing.box()
    if min(left, top) < MARGIN / 2 or max(right, bottom) > 1 - MARGIN / 2:
        return False
    return all(
        left > r + MARGIN or right < l - MARGIN or top > b + MARGIN or bottom < t - MARGIN
        for l, t, r, b in (other.box() for other in others)  # noqa: E741 (another's left, top, right, bottom)
    )


def _pair(random: Random, event: str) -> tuple[Thing, Thing]:
    """Two objects that meet, or nearly so; along x, then turned into one of four directions."""
    one, two = (_thing(random, "nothing") for _ in range(2))
    if event in ("collision", "miss"):
        one, two = (replace(thing, shape=random.choice([*REACH])) for thing in (one, two))
    one, two = replace(one, size="small"), replace(two, size=random.choice(("small", "large")))
    if event in ("collision", "miss"):
        there = random.uniform(0.74, 0.8)
        gap = sum(REACH[thing.shape] * RADII[thing.size] * thing.scale for thing in (one, two))
        start = random.uniform(0.12, 0.16)
        # A miss goes away from the other object, from where a hit would have ended.
        end = there - gap + 0.008
        near = (end if event == "collision" else start) - (start if event == "collision" else end - 0.12)
        begin = start if event == "collision" else end - 0.12
        lane = random.uniform(0.2, 0.8)
        legs = (Leg(0.0, 2.75, near, 0.0),)
        one = replace(one, x=begin, y=lane, legs=legs, action="moves")
        two = replace(two, x=there, y=min(0.84, max(0.16, lane)))
    else:
        two = replace(two, size="small")
        lane = random.uniform(0.16, 0.6)
        apart = random.uniform(0.24, 0.28)
        back, front = random.uniform(0.12, 0.15), random.uniform(0.36, 0.4)
        if event == "overtaking":
            fast, slow = random.uniform(0.66, 0.7), random.uniform(0.16, 0.2)
        else:
            fast, slow = random.uniform(0.2, 0.24), random.uniform(0.4, 0.46)
        y, other = (lane, lane + apart) if random.random() < 0.5 else (lane + apart, lane)
        one = replace(one, x=back, y=y, legs=(Leg(0.0, 3.5, fast, 0.0),), action="moves")
        two = replace(two, x=front, y=other, legs=(Leg(0.0, 3.5, slow, 0.0),), action="moves")
    quarter = random.randrange(4)
    return replace(_turned(one, quarter), role="first"), replace(_turned(two, quarter), role="second")


def _turned(thing: Thing, quarters: int) -> Thing:
    """The object with the whole picture turned by quarters about its middle."""
    cos, sin = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    x, y = thing.x - 0.5, thing.y - 0.5
    legs = tuple(replace(leg, dx=cos * leg.dx - sin * leg.dy, dy=sin * leg.dx + cos * leg.dy) for leg in thing.legs)
    return replace(thing, x=0.5 + cos * x - sin * y, y=0.5 + sin * x + cos * y, legs=legs)


def _names_differ(things: list[Thing]) -> bool:
    """Can each object be told from every other by its colour and shape, whenever one looks?"""
    names = [(colour, thing.shape) for thing in things for colour in thing.colours()]
    return len(set(names)) == len(names)


def _events_apart(things: list[Thing]) -> bool:
    """Do no two events fall so close together that their order is hard to see?"""
    times = sorted(thing.at for thing in things if thing.action in EVENTS)
    return all(b - a >= 1.0 for a, b in pairwise(times))


def held_out_things(scene: Scene) -> Iterator[Thing]:
    """The objects that make a scene compositional."""
    return (thing for thing in scene.things if thing.held_out())
