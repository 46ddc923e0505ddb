"""Questions about scenes with their true answers, in the style of MSVD-QA and ActivityNet-QA: one or two words.

A template is a function that yields a question and its answer wherever a scene lets it be asked without doubt.
Yes-no questions and questions between two alternatives are asked either way round with equal chance, so that the
question alone says nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

from vococache.pipeline.synthetic.scene import (
    ACTIONS,
    COLOURS,
    EVENTS,
    HELD_OUT_ACTIONS,
    HELD_OUT_COLOURS,
    LOOKS,
    SHAPES,
    Scene,
    Thing,
    held_out_things,
)

PREFERENCE = {
    "motion": 3, "change": 3, "order": 6, "times": 6, "interaction": 4, "activity": 2, "relation": 3, "position": 2,
    "existence": 0.7, "size": 0.7, "background": 0.5,
}  # fmt: skip
# In training, what single pictures teach soon is asked less, and what only time tells more.
TEACHING_PREFERENCE = {
    "order": 15, "times": 12, "interaction": 7, "change": 6, "motion": 4, "activity": 2, "shape": 2, "relation": 1.5,
    "count": 0.7, "position": 0.5, "existence": 0.4, "color": 0.3, "size": 0.2, "background": 0.05,
}  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, what kind it is, and the template it came from."""

    text: str
    answer: str
    type: str
    template: str


@dataclass(frozen=True, slots=True)
class View:
    """What templates look at: a scene, and the object that a question should be about."""

    scene: Scene
    thing: Thing
    random: Random

    def one_of(self, *phrasings: str) -> str:
        return self.random.choice(phrasings)

    def mostly(self, usual: str, opposite: str) -> str:
        """The usual word three times in four.

        Were its opposite as frequent, what the pictures show would by itself be tied to neither answer, and a
        training that starts with such ties could not begin.
        """
        return usual if self.random.random() < 0.75 else opposite

    def name(self, thing: Thing) -> str:
        """A phrase that fits this object alone: "the red circle", "the circle", "the red object"."""
        others = [other for other in self.scene.things if other is not thing]
        names = [f"the {thing.colour} {thing.shape}"]
        if all(other.shape != thing.shape for other in others):
            names.append(f"the {thing.shape}")
        if all(thing.colour not in other.colours() for other in others):
            names.append(f"the {thing.colour} object")
        return self.random.choice(names)

    def full_name(self, thing: Thing) -> str:
        """A name that holds the object's shape: for questions that are answered with it."""
        return f"the {thing.colour} {thing.shape}"

    def others(self) -> list[Thing]:
        return [other for other in self.scene.things if other is not self.thing]

    def alone_in(self, trait: Callable[[Thing], object]) -> bool:
        """Does no other object share this trait of the view's?"""
        return all(trait(other) != trait(self.thing) for other in self.others())

    def is_only(self, test: Callable[[Thing], bool]) -> bool:
        """Does the view's object pass the test, and no other?"""
        return [thing for thing in self.scene.things if test(thing)] == [self.thing]


Asked = tuple[str, str]  # question, answer
Template = Callable[[View], Asked | None]
TEMPLATES: dict[str, tuple[str, bool, Template]] = {}  # name: type, fit for a still picture, function


def template(kind: str, *, still: bool = False) -> Callable[[Template], Template]:
    """Register a template of a question type; `still`: it needs no time, so a picture will do."""

    def register(function: Template) -> Template:
        TEMPLATES[function.__name__] = (kind, still, function)
        return function

    return register


def all_questions(scene: Scene, random: Random, *, about: Iterable[Thing] | None = None) -> Iterator[Question]:
    """One question of each template that fits the scene, about objects chosen at random (`about`: among these)."""
    still = not scene.event and all(thing.action == "nothing" for thing in scene.things)
    candidates = list(scene.things if about is None else about)
    for name, (kind, for_picture, function) in TEMPLATES.items():
        if still and not for_picture:
            continue
        for thing in random.sample(candidates, len(candidates)):
            asked = function(View(scene, thing, random))
            if asked is not None:
                yield Question(*asked, kind, name)
                break


def questions(
    scene: Scene, count: int, random: Random, *, teaching: bool = False, colours: bool = True
) -> list[Question]:
    """Up to `count` questions of different templates; of a compositional scene, about its held-out objects.

    Types that few scenes allow are preferred where a scene does (`PREFERENCE`). `teaching`: up to two of a template, by
    `TEACHING_PREFERENCE`, and none whose text alone teaches that a held-out combination does not exist. Without
    `colours`: none with a colour's name in it.
    """
    about = list(held_out_things(scene)) or None
    found = list(all_questions(scene, random, about=about))
    preference = PREFERENCE
    if teaching:
        found = list(dict.fromkeys([*found, *all_questions(scene, random, about=about)]))
        found = [question for question in found if not rules_out_a_combination(question)]
        preference = TEACHING_PREFERENCE
    if not colours:
        found = [question for question in found if words_of(question).isdisjoint(COLOURS)]
    of_type = Counter(question.type for question in found)
    # A weighted sample without replacement (Efraimidis and Spirakis 2006).
    keys = [random.random() ** (of_type[question.type] / preference.get(question.type, 1)) for question in found]
    order = sorted(range(len(found)), key=lambda index: -keys[index])
    return [found[index] for index in order[:count]]


def words_of(question: Question) -> set[str]:
    """All words of its text and its answer."""
    return {*question.text.rstrip("?").split(), *question.answer.split()}


def rules_out_a_combination(question: Question) -> bool:
    """Does it name half of a held-out combination, and ask for what might be the other half?

    In training nothing yellow is a circle: whoever is asked there for the shape of yellow things learns from the
    text, without looking, that "circle" is never right. (Colours of circles are asked all the same: too few shapes
    would be left to learn the question from.)
    """
    words = set(question.text.rstrip("?").split())
    if question.answer in words or question.type == "interaction":  # a choice between both; about another object
        return False
    if question.answer in SHAPES:
        return any(half in words for _, half in HELD_OUT_COLOURS | HELD_OUT_ACTIONS)
    return question.answer in ACTIONS and any(shape in words for shape, _ in HELD_OUT_ACTIONS)


# ---- what one picture shows ------------------------------------------------------------------------------


@template("existence", still=True)
def exists(view: View) -> Asked | None:
    colour, shape = view.thing.colour, view.thing.shape
    present = {(c, thing.shape) for thing in view.scene.things for c in thing.colours()}
    truth = view.random.random() < 0.5
    while not truth and ((colour, shape) in present or (shape, colour) in HELD_OUT_COLOURS):
        way = view.random.randrange(3)
        if way == 0:  # both are there, but not together
            colour = view.random.choice(view.scene.things).colour
        elif way == 1:
            colour = view.random.choice(COLOURS)
        else:
            shape = view.random.choice(SHAPES)
    what = f"a {colour} {shape}"
    asked = view.one_of(f"is there {what}?", f"can you see {what}?", f"is there {what} in the video?")
    return asked, "yes" if truth else "no"


@template("existence", still=True)
def exists_shape(view: View) -> Asked | None:
    shape = view.thing.shape if view.random.random() < 0.5 else None
    absent = [other for other in SHAPES if all(other != thing.shape for thing in view.scene.things)]
    asked = shape or view.random.choice(absent)
    return view.one_of(f"is there a {asked}?", f"does the video show a {asked}?"), "yes" if shape else "no"


@template("color", still=True)
def colour_of(view: View) -> Asked | None:
    shape = view.thing.shape
    if view.thing.new_colour or not view.alone_in(lambda thing: thing.shape):
        return None
    return (
        view.one_of(
            f"what color is the {shape}?", f"what is the color of the {shape}?", f"which color is the {shape}?"
        ),
        view.thing.colour,
    )


@template("color", still=True)
def colour_beside(view: View) -> Asked | None:
    where = _apart(view)
    if where is None or view.thing.new_colour:
        return None
    return view.one_of(f"what color is the object {where}?", f"which color is the thing {where}?"), view.thing.colour


@template("shape", still=True)
def shape_beside(view: View) -> Asked | None:
    where = _apart(view)
    if where is None:
        return None
    return view.one_of(f"what shape is the object {where}?", f"which shape is the thing {where}?"), view.thing.shape


@template("shape", still=True)
def shape_of(view: View) -> Asked | None:
    colour = view.thing.colour
    if any(colour in other.colours() for other in view.others()):
        return None
    asked = view.one_of(
        f"what shape is the {colour} object?", f"what is the {colour} thing?", f"which shape is {colour}?"
    )
    return asked, view.thing.shape


@template("count", still=True)
def count_all(view: View) -> Asked | None:
    asked = view.one_of(
        "how many objects are there?", "how many shapes does the video show?", "how many things are there?"
    )
    return asked, NUMBERS[len(view.scene.things)]


@template("count", still=True)
def count_shape(view: View) -> Asked | None:
    shape = view.thing.shape if view.random.random() < 0.75 else view.random.choice(SHAPES)
    plural = {"cross": "crosses"}.get(shape, f"{shape}s")
    number = sum(thing.shape == shape for thing in view.scene.things)
    return view.one_of(f"how many {plural} are there?", f"how many {plural} can you see?"), NUMBERS[number]


@template("count", still=True)
def count_colour(view: View) -> Asked | None:
    colour = view.thing.colour if view.random.random() < 0.75 else view.random.choice(COLOURS)
    if any(colour in thing.colours() and thing.new_colour for thing in view.scene.things):
        return None
    number = sum(thing.colour == colour for thing in view.scene.things)
    return view.one_of(f"how many {colour} objects are there?", f"how many things are {colour}?"), NUMBERS[number]


@template("position", still=True)
def side_of(view: View) -> Asked | None:
    (x, _), name = view.thing.centre(0), view.name(view.thing)
    if view.thing.legs or abs(x - 0.5) < 0.12:
        return None
    asked = view.one_of(f"is {name} on the left or on the right?", f"on which side is {name}, left or right?")
    return asked, "left" if x < 0.5 else "right"


@template("position", still=True)
def height_of(view: View) -> Asked | None:
    (_, y), name = view.thing.centre(0), view.name(view.thing)
    if view.thing.legs or abs(y - 0.5) < 0.12:
        return None
    asked = view.one_of(f"is {name} at the top or at the bottom?", f"where is {name}, at the top or at the bottom?")
    return asked, "top" if y < 0.5 else "bottom"


@template("relation", still=True)
def beside(view: View) -> Asked | None:
    other = _partner(view)
    if other is None or abs(view.thing.x - other.x) < 0.18:
        return None
    asked = f"is {view.name(view.thing)} to the left or to the right of {view.name(other)}?"
    return asked, "left" if view.thing.x < other.x else "right"


@template("relation", still=True)
def above(view: View) -> Asked | None:
    other = _partner(view)
    if other is None or abs(view.thing.y - other.y) < 0.18:
        return None
    asked = f"is {view.name(view.thing)} above or below {view.name(other)}?"
    return asked, "above" if view.thing.y < other.y else "below"


@template("size", still=True)
def size_of(view: View) -> Asked | None:
    if view.thing.new_size != view.thing.size:
        return None
    if view.thing.role and view.thing.size == "small" and view.random.random() < 0.6:
        return None  # most that meet are small
    name = view.name(view.thing)
    return view.one_of(f"is {name} small or large?", f"what size is {name}, small or large?"), view.thing.size


@template("size", still=True)
def larger(view: View) -> Asked | None:
    same = [other for other in view.others() if other.shape != view.thing.shape]
    same = [other for other in same if view.alone_in(lambda t: t.shape) and _only_shape(view, other)]
    if not same:
        return None
    other = view.random.choice(same)
    if any(thing.new_size != thing.size for thing in (view.thing, other)) or other.size == view.thing.size:
        return None
    first, second = view.random.sample((view.thing.shape, other.shape), 2)
    what, size = view.random.choice((("larger", "large"), ("smaller", "small")))
    answer = view.thing if view.thing.size == size else other
    return f"which is {what}, the {first} or the {second}?", answer.shape


@template("background", still=True)
def pattern(view: View) -> Asked | None:
    asked = view.one_of("what does the background look like?", "is the background plain, striped or checkered?")
    return asked, view.scene.background


@template("background", still=True)
def brightness(view: View) -> Asked | None:
    asked = view.one_of("is the background bright or dark?", "is the video bright or dark?")
    return asked, "bright" if view.scene.bright else "dark"


# ---- motion: the direction of time matters ---------------------------------------------------------------


@template("motion")
def direction(view: View) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name = view.name(view.thing)
    asked = view.one_of(
        f"in which direction does {name} move?", f"which way does {name} go?", f"where is {name} moving?"
    )
    return asked, view.thing.legs[0].direction


@template("motion")
def way(view: View) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name, truth = view.name(view.thing), view.thing.legs[0].direction
    if truth in ("left", "right"):
        return f"does {name} move to the left or to the right?", truth
    return f"does {name} move up or down?", truth


@template("motion")
def moves_there(view: View) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name, truth = view.name(view.thing), view.thing.legs[0].direction
    back = {"left": "right", "right": "left", "up": "down", "down": "up"}
    said = truth if view.random.random() < 0.5 else back[truth]
    where = {"left": "to the left", "right": "to the right"}.get(said, said)
    return view.one_of(f"does {name} move {where}?", f"is {name} moving {where}?"), "yes" if said == truth else "no"


@template("motion")
def colour_moving(view: View) -> Asked | None:
    if view.thing.action != "moves" or len(view.scene.things) < 2:
        return None
    where = view.thing.legs[0].direction
    if not view.is_only(lambda thing: where in thing.directions()):
        return None
    return view.one_of(
        f"what color is the object that moves {where}?", f"which color moves {where}?"
    ), view.thing.colour


@template("motion")
def shape_moving(view: View) -> Asked | None:
    if view.thing.action != "moves" or len(view.scene.things) < 2:
        return None
    where = view.thing.legs[0].direction
    if not view.is_only(lambda thing: where in thing.directions()):
        return None
    return view.one_of(f"what shape moves {where}?", f"which shape is moving {where}?"), view.thing.shape


@template("motion")
def side_then(view: View) -> Asked | None:
    """Where a moving object is at the start or at the end, when that differs."""
    (ax, ay), (bx, by) = view.thing.centre(0), view.thing.centre(3.5)
    late = view.random.random() < 0.5
    when = view.one_of("at the end", "in the end") if late else view.one_of("at the beginning", "at first")
    name = view.name(view.thing)
    if abs(ax - bx) > 0.25 and (ax - 0.5) * (bx - 0.5) < 0 and min(abs(ax - 0.5), abs(bx - 0.5)) > 0.08:
        return f"is {name} on the left or on the right {when}?", "left" if (bx if late else ax) < 0.5 else "right"
    if abs(ay - by) > 0.25 and (ay - 0.5) * (by - 0.5) < 0 and min(abs(ay - 0.5), abs(by - 0.5)) > 0.08:
        return f"is {name} at the top or at the bottom {when}?", "top" if (by if late else ay) < 0.5 else "bottom"
    return None


# ---- activity: that something moves, and how ------------------------------------------------------------


@template("activity")
def moves(view: View) -> Asked | None:
    if view.thing.action not in ("moves", "turns", "nothing"):
        return None
    if view.thing.legs and view.random.random() < 0.5:  # as many yes as no: most objects that fit do move
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"does {name} move?", f"is {name} moving?", f"does {name} change its place?")
    return asked, "yes" if view.thing.legs else "no"


@template("activity")
def speed(view: View) -> Asked | None:
    if view.thing.speed not in ("slowly", "quickly"):
        return None
    name = view.name(view.thing)
    return view.one_of(
        f"does {name} move slowly or quickly?", f"how does {name} move, slowly or quickly?"
    ), view.thing.speed


@template("activity")
def only_moving(view: View) -> Asked | None:
    if len(view.scene.things) < 2 or not view.is_only(lambda thing: bool(thing.legs)):
        return None
    if view.random.random() < 0.5:
        return view.one_of(
            "what color is the object that moves?", "what is the color of the moving object?"
        ), view.thing.colour
    return view.one_of("what shape moves?", "what is moving?"), view.thing.shape


@template("activity")
def count_moving(view: View) -> Asked | None:
    number = sum(bool(thing.legs) for thing in view.scene.things)
    return view.one_of("how many objects move?", "how many things are moving?"), NUMBERS[number]


# ---- change ----------------------------------------------------------------------------------------------


@template("change")
def what_happens(view: View) -> Asked | None:
    name = view.name(view.thing)
    return view.one_of(f"what happens to {name}?", f"what does {name} do?"), view.thing.action


@template("change")
def new_colour(view: View) -> Asked | None:
    if not view.thing.new_colour:
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"what color does {name} become?", f"to which color does {name} change?")
    return asked, view.thing.new_colour


@template("change")
def old_colour(view: View) -> Asked | None:
    if not view.thing.new_colour:
        return None
    who = f"the {view.thing.new_colour} object at first"
    if view.alone_in(lambda thing: thing.shape) and view.random.random() < 0.5:
        who = f"the {view.thing.shape} at first"
    elif any(view.thing.new_colour in other.colours() for other in view.others()):
        return None
    return f"what color was {who}?", view.thing.colour


@template("change")
def changing_shape(view: View) -> Asked | None:
    deed = view.thing.action
    if len(view.scene.things) < 2 or deed not in (*EVENTS, "blinks") or not view.alone_in(lambda thing: thing.action):
        return None
    return view.one_of(f"what shape {deed}?", f"which shape {deed}?"), view.thing.shape


@template("change")
def changing_colour(view: View) -> Asked | None:
    deed = view.thing.action
    if len(view.scene.things) < 2 or deed not in (*EVENTS, "blinks") or not view.alone_in(lambda thing: thing.action):
        return None
    if deed == "changes color":
        return None
    return view.one_of(
        f"what color is the object that {deed}?", f"which color has the object that {deed}?"
    ), view.thing.colour


@template("change")
def early_or_late(view: View) -> Asked | None:
    if view.thing.action not in EVENTS or not _off_the_middle(view.thing):
        return None
    deed = view.one_of(_infinitive(view.thing.action), "change")
    name = view.name(view.thing)
    asked = view.one_of(f"does {name} {deed} early or late?", f"when does {name} {deed}, early or late?")
    return asked, _half(view.thing)


@template("change")
def which_change(view: View) -> Asked | None:
    pairs = {"grows": "grow or shrink", "shrinks": "grow or shrink", "appears": "appear or disappear"}
    pairs["disappears"] = pairs["appears"]
    if view.thing.action not in pairs:
        return None
    return f"does {view.name(view.thing)} {pairs[view.thing.action]}?", view.thing.action.removesuffix("s")


# ---- order ----------------------------------------------------------------------------------------------


@template("order")
def happens_first(view: View) -> Asked | None:
    events = _events(view.scene)
    if len(events) != 2 or events[0].action == events[1].action or not _nothing_else(view, events):
        return None
    when = view.mostly("first", "last")
    asked = view.one_of(f"what happens {when}?", f"what is the {when} change?")
    return asked, events[0 if when == "first" else 1].action


@template("order")
def shape_first(view: View) -> Asked | None:
    events = _events(view.scene)
    if len(events) != 2 or events[0].shape == events[1].shape or not _nothing_else(view, events):
        return None
    when = view.mostly("first", "last")
    one, two = view.random.sample([view.full_name(thing) for thing in events], 2)
    asked = view.one_of(f"what shape changes {when}?", f"which changes {when}, {one} or {two}?")
    return asked, events[0 if when == "first" else 1].shape


@template("order")
def colour_first(view: View) -> Asked | None:
    events = [thing for thing in _events(view.scene) if thing.action in ("appears", "disappears")]
    events = [thing for thing in events if thing.action == view.thing.action]
    if len(events) != 2 or events[0].colour == events[1].colour:
        return None
    when = view.mostly("first", "last")
    asked = f"what color is the object that {events[0].action} {when}?"
    return asked, events[0 if when == "first" else 1].colour


@template("order")
def shape_early(view: View) -> Asked | None:
    """Of two objects that change, the one that alone does so in its half of the clip."""
    events = _events(view.scene)
    if len(events) != 2 or events[0].shape == events[1].shape or not _nothing_else(view, events):
        return None
    half = _half(view.thing)
    if not _off_the_middle(view.thing) or [_half(thing) for thing in events].count(half) > 1:
        return None
    return view.one_of(f"what shape changes {half}?", f"which shape changes {half}?"), view.thing.shape


@template("order")
def earlier(view: View) -> Asked | None:
    events = _events(view.scene)
    if len(events) < 2 or view.thing not in events:
        return None
    other = view.random.choice([thing for thing in events if thing is not view.thing])
    deed = view.one_of(_infinitive(view.thing.action), "change")
    choice = view.one_of("earlier or later", "later or earlier")
    answer = "earlier" if view.thing.at < other.at else "later"
    return f"does {view.name(view.thing)} {deed} {choice} than {view.name(other)}?", answer


@template("order")
def direction_then(view: View) -> Asked | None:
    if view.thing.action != "turns":
        return None
    late = view.random.random() < 0.5
    when = view.one_of("at the end", "last") if late else view.one_of("at the beginning", "first")
    name = view.name(view.thing)
    asked = view.one_of(f"in which direction does {name} move {when}?", f"which way does {name} go {when}?")
    return asked, view.thing.legs[-1 if late else 0].direction


# ---- how many times, and who meets whom ------------------------------------------------------------------


@template("times")
def times_blinking(view: View) -> Asked | None:
    if not view.thing.hidden:
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"how many times does {name} blink?", f"how often does {name} blink?")
    return asked, NUMBERS[len(view.thing.hidden)]


@template("interaction")
def collide(view: View) -> Asked | None:
    if view.scene.event not in ("collision", "miss") or view.thing not in _met(view.scene):
        return None
    one, two = view.random.sample([view.name(thing) for thing in _met(view.scene)], 2)
    asked = view.one_of(f"do {one} and {two} collide?", f"does {one} meet {two}?")
    return asked, "yes" if view.scene.event == "collision" else "no"


@template("interaction")
def hits_what(view: View) -> Asked | None:
    if view.scene.event != "collision" or view.thing not in _met(view.scene):
        return None
    mover, target = _met(view.scene)
    asked = view.one_of(f"what does {view.name(mover)} hit?", f"which shape does {view.name(mover)} run into?")
    return asked, target.shape


@template("interaction")
def overtakes(view: View) -> Asked | None:
    rivals = _rivals(view)
    if rivals is None:
        return None
    behind, ahead = rivals
    truth = view.scene.event == "overtaking"
    asked = view.one_of(
        f"does {view.name(behind)} overtake {view.name(ahead)}?", f"does {view.name(behind)} pass {view.name(ahead)}?"
    )
    return asked, "yes" if truth else "no"


@template("interaction")
def faster(view: View) -> Asked | None:
    rivals = _rivals(view)
    if rivals is None:
        return None
    behind, ahead = rivals
    quick = behind if view.scene.event == "overtaking" else ahead
    one, two = view.random.sample((behind, ahead), 2)
    choice = view.one_of("faster or slower", "slower or faster")
    return f"is {view.name(one)} {choice} than {view.name(two)}?", "faster" if one is quick else "slower"


@template("interaction")
def ahead_then(view: View) -> Asked | None:
    """Which of two that move the same way is in front, at the beginning or at the end."""
    rivals = _rivals(view)
    if rivals is None:
        return None
    behind, ahead = rivals
    when = view.mostly("at the end", "at the beginning")
    front = behind if when == "at the end" and view.scene.event == "overtaking" else ahead
    one, two = view.random.sample((behind, ahead), 2)
    choice = view.one_of("ahead of or behind", "behind or ahead of")
    return f"is {view.name(one)} {choice} {view.name(two)} {when}?", "ahead" if one is front else "behind"


# ---- what templates share --------------------------------------------------------------------------------


def _moving(scene: Scene) -> bool:
    return any(thing.legs for thing in scene.things)


def _apart(view: View) -> str | None:
    """On which side of the only other object the view's lies, where neither moves."""
    if len(view.scene.things) != 2 or _moving(view.scene):
        return None
    (x, y), (a, b) = view.thing.centre(0), view.others()[0].centre(0)
    if view.random.random() < 0.5:
        if abs(x - a) < 0.2:
            return None
        return "on the left" if x < a else "on the right"
    if abs(y - b) < 0.2:
        return None
    return "at the top" if y < b else "at the bottom"


def _partner(view: View) -> Thing | None:
    """Another object that stays, as the view's own does."""
    staying = [other for other in view.others() if not other.legs]
    return view.random.choice(staying) if staying and not view.thing.legs else None


def _only_shape(view: View, thing: Thing) -> bool:
    return sum(other.shape == thing.shape for other in view.scene.things) == 1


def _events(scene: Scene) -> list[Thing]:
    """The objects that change, in the order in which they do."""
    return sorted((thing for thing in scene.things if thing.action in EVENTS), key=lambda thing: thing.at)


def _nothing_else(view: View, events: list[Thing]) -> bool:
    """Is the view's object one of these, and does no other object do anything that might be called an event?"""
    return view.thing in events and all(thing in events or thing.action == "nothing" for thing in view.scene.things)


def _rivals(view: View) -> tuple[Thing, Thing] | None:
    """Two that move the same way, the view's among them: the one behind, the one ahead."""
    if view.scene.event not in ("overtaking", "pursuit") or view.thing not in _met(view.scene):
        return None
    return _met(view.scene)


def _infinitive(action: str) -> str:
    """What follows "does it": "appear", "change color"."""
    verb, *rest = action.split()
    return " ".join([verb.removesuffix("s"), *rest])


def _half(thing: Thing) -> str:
    """In which half of the clip its event happens."""
    return "early" if thing.at < LOOKS[-1] / 2 else "late"


def _off_the_middle(thing: Thing) -> bool:
    return abs(thing.at - LOOKS[-1] / 2) > 0.3


def _met(scene: Scene) -> tuple[Thing, Thing]:
    """Of a meeting: the one that moves into, away from or behind the other; the other."""
    (one,) = (thing for thing in scene.things if thing.role == "first")
    (two,) = (thing for thing in scene.things if thing.role == "second")
    return one, two
