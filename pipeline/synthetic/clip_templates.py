"""Templates about what takes time: motion, change, order, counts of what happens, meetings."""

from functools import partial

from vococache.pipeline.synthetic.scene import EVENTS, LOOKS, Scene, Thing
from vococache.pipeline.synthetic.template import NUMBERS, Asked, SceneView, Template, collecting

CLIP_TEMPLATES: list[Template] = []
template = collecting(CLIP_TEMPLATES)


# ---- motion: the direction of time matters ---------------------------------------------------------------


@template("motion")
def direction(view: SceneView) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name = view.name(view.thing)
    asked = view.one_of(
        f"in which direction does {name} move?", f"which way does {name} go?", f"where is {name} moving?"
    )
    return asked, view.thing.legs[0].direction


@template("motion")
def way(view: SceneView) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name, truth = view.name(view.thing), view.thing.legs[0].direction
    if truth in ("left", "right"):
        return f"does {name} move to the left or to the right?", truth
    return f"does {name} move up or down?", truth


@template("motion")
def moves_there(view: SceneView) -> Asked | None:
    if view.thing.action != "moves":
        return None
    name, truth = view.name(view.thing), view.thing.legs[0].direction
    back = {"left": "right", "right": "left", "up": "down", "down": "up"}
    said = truth if view.random.random() < 0.5 else back[truth]
    where = {"left": "to the left", "right": "to the right"}.get(said, said)
    return view.one_of(f"does {name} move {where}?", f"is {name} moving {where}?"), "yes" if said == truth else "no"


@template("motion")
def colour_moving(view: SceneView) -> Asked | None:
    if view.thing.action != "moves" or len(view.scene.things) < 2:
        return None
    where = view.thing.legs[0].direction
    if not view.is_only(lambda thing: where in thing.directions()):
        return None
    return view.one_of(
        f"what color is the object that moves {where}?", f"which color moves {where}?"
    ), view.thing.colour


@template("motion")
def shape_moving(view: SceneView) -> Asked | None:
    if view.thing.action != "moves" or len(view.scene.things) < 2:
        return None
    where = view.thing.legs[0].direction
    if not view.is_only(lambda thing: where in thing.directions()):
        return None
    return view.one_of(f"what shape moves {where}?", f"which shape is moving {where}?"), view.thing.shape


@template("motion")
def side_then(view: SceneView) -> Asked | None:
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
def moves(view: SceneView) -> Asked | None:
    if view.thing.action not in ("moves", "turns", "nothing"):
        return None
    if view.thing.legs and view.random.random() < 0.5:  # as many yes as no: most objects that fit do move
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"does {name} move?", f"is {name} moving?", f"does {name} change its place?")
    return asked, "yes" if view.thing.legs else "no"


@template("activity")
def speed(view: SceneView) -> Asked | None:
    if view.thing.speed not in ("slowly", "quickly"):
        return None
    name = view.name(view.thing)
    return view.one_of(
        f"does {name} move slowly or quickly?", f"how does {name} move, slowly or quickly?"
    ), view.thing.speed


@template("activity")
def only_moving(view: SceneView) -> Asked | None:
    if len(view.scene.things) < 2 or not view.is_only(lambda thing: bool(thing.legs)):
        return None
    if view.random.random() < 0.5:
        return view.one_of(
            "what color is the object that moves?", "what is the color of the moving object?"
        ), view.thing.colour
    return view.one_of("what shape moves?", "what is moving?"), view.thing.shape


@template("activity")
def count_moving(view: SceneView) -> Asked | None:
    number = sum(bool(thing.legs) for thing in view.scene.things)
    return view.one_of("how many objects move?", "how many things are moving?"), NUMBERS[number]


# ---- change ----------------------------------------------------------------------------------------------


@template("change")
def what_happens(view: SceneView) -> Asked | None:
    name = view.name(view.thing)
    return view.one_of(f"what happens to {name}?", f"what does {name} do?"), view.thing.action


@template("change")
def new_colour(view: SceneView) -> Asked | None:
    if not view.thing.new_colour:
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"what color does {name} become?", f"to which color does {name} change?")
    return asked, view.thing.new_colour


@template("change")
def old_colour(view: SceneView) -> Asked | None:
    if not view.thing.new_colour:
        return None
    who = f"the {view.thing.new_colour} object at first"
    if view.alone_in(lambda thing: thing.shape) and view.random.random() < 0.5:
        who = f"the {view.thing.shape} at first"
    elif any(view.thing.new_colour in other.colours() for other in view.others()):
        return None
    return f"what color was {who}?", view.thing.colour


@template("change")
def changing_shape(view: SceneView) -> Asked | None:
    deed = view.thing.action
    if len(view.scene.things) < 2 or deed not in (*EVENTS, "blinks") or not view.alone_in(lambda thing: thing.action):
        return None
    return view.one_of(f"what shape {deed}?", f"which shape {deed}?"), view.thing.shape


@template("change")
def changing_colour(view: SceneView) -> Asked | None:
    deed = view.thing.action
    if len(view.scene.things) < 2 or deed not in (*EVENTS, "blinks") or not view.alone_in(lambda thing: thing.action):
        return None
    if deed == "changes color":
        return None
    return view.one_of(
        f"what color is the object that {deed}?", f"which color has the object that {deed}?"
    ), view.thing.colour


@template("change")
def early_or_late(view: SceneView) -> Asked | None:
    if view.thing.action not in EVENTS or not _off_the_middle(view.thing):
        return None
    deed = view.one_of(_infinitive(view.thing.action), "change")
    name = view.name(view.thing)
    asked = view.one_of(f"does {name} {deed} early or late?", f"when does {name} {deed}, early or late?")
    return asked, _half(view.thing)


@template("change")
def which_change(view: SceneView) -> Asked | None:
    pairs = {"grows": "grow or shrink", "shrinks": "grow or shrink", "appears": "appear or disappear"}
    pairs["disappears"] = pairs["appears"]
    if view.thing.action not in pairs:
        return None
    return f"does {view.name(view.thing)} {pairs[view.thing.action]}?", view.thing.action.removesuffix("s")


# ---- order ----------------------------------------------------------------------------------------------


@template("order")
def happens_first(view: SceneView) -> Asked | None:
    events = _events(view.scene)
    if len(events) != 2 or events[0].action == events[1].action or not _nothing_else(view, events):
        return None
    when = view.mostly("first", "last")
    asked = view.one_of(f"what happens {when}?", f"what is the {when} change?")
    return asked, events[0 if when == "first" else 1].action


@template("order")
def shape_first(view: SceneView) -> Asked | None:
    events = _events(view.scene)
    if len(events) != 2 or events[0].shape == events[1].shape or not _nothing_else(view, events):
        return None
    when = view.mostly("first", "last")
    one, two = view.random.sample([view.full_name(thing) for thing in events], 2)
    asked = view.one_of(f"what shape changes {when}?", f"which changes {when}, {one} or {two}?")
    return asked, events[0 if when == "first" else 1].shape


@template("order")
def colour_first(view: SceneView) -> Asked | None:
    events = [thing for thing in _events(view.scene) if thing.action in ("appears", "disappears")]
    events = [thing for thing in events if thing.action == view.thing.action]
    if len(events) != 2 or events[0].colour == events[1].colour:
        return None
    when = view.mostly("first", "last")
    asked = f"what color is the object that {events[0].action} {when}?"
    return asked, events[0 if when == "first" else 1].colour


@template("order")
def shape_early(view: SceneView) -> Asked | None:
    """Of two objects that change, the one that alone does so in its half of the clip."""
    events = _events(view.scene)
    if len(events) != 2 or events[0].shape == events[1].shape or not _nothing_else(view, events):
        return None
    half = _half(view.thing)
    if not _off_the_middle(view.thing) or [_half(thing) for thing in events].count(half) > 1:
        return None
    return view.one_of(f"what shape changes {half}?", f"which shape changes {half}?"), view.thing.shape


@template("order")
def earlier(view: SceneView) -> Asked | None:
    events = _events(view.scene)
    if len(events) < 2 or view.thing not in events:
        return None
    other = view.random.choice([thing for thing in events if thing is not view.thing])
    deed = view.one_of(_infinitive(view.thing.action), "change")
    choice = view.one_of("earlier or later", "later or earlier")
    answer = "earlier" if view.thing.at < other.at else "later"
    return f"does {view.name(view.thing)} {deed} {choice} than {view.name(other)}?", answer


@template("order")
def direction_then(view: SceneView) -> Asked | None:
    if view.thing.action != "turns":
        return None
    late = view.random.random() < 0.5
    when = view.one_of("at the end", "last") if late else view.one_of("at the beginning", "first")
    name = view.name(view.thing)
    asked = view.one_of(f"in which direction does {name} move {when}?", f"which way does {name} go {when}?")
    return asked, view.thing.legs[-1 if late else 0].direction


# ---- how many times, and who meets whom ------------------------------------------------------------------


@template("times")
def times_blinking(view: SceneView) -> Asked | None:
    if not view.thing.hidden:
        return None
    name = view.name(view.thing)
    asked = view.one_of(f"how many times does {name} blink?", f"how often does {name} blink?")
    return asked, NUMBERS[len(view.thing.hidden)]


def _blinks_then(when: str, first: float, last: float, view: SceneView) -> Asked | None:
    if not view.thing.hidden:
        return None
    then = any(first < (start + end) / 2 < last for start, end in view.thing.hidden)
    return f"does {view.name(view.thing)} blink {when}?", "yes" if then else "no"


# In training alone, and there late: what counting is made of.
BLINK_TEMPLATES = [
    Template(f"blinks_{name}", "when", partial(_blinks_then, when, first, last))
    for name, when, first, last in (
        ("early", "at the beginning", 0.0, 1.25),
        ("midway", "in the middle", 1.25, 2.25),
        ("late", "at the end", 2.25, LOOKS[-1]),
    )
]


@template("interaction")
def collide(view: SceneView) -> Asked | None:
    if view.scene.event not in ("collision", "miss") or view.thing not in _met(view.scene):
        return None
    one, two = view.random.sample([view.name(thing) for thing in _met(view.scene)], 2)
    asked = view.one_of(f"do {one} and {two} collide?", f"does {one} meet {two}?")
    return asked, "yes" if view.scene.event == "collision" else "no"


@template("interaction")
def hits_what(view: SceneView) -> Asked | None:
    if view.scene.event != "collision" or view.thing not in _met(view.scene):
        return None
    mover, target = _met(view.scene)
    asked = view.one_of(f"what does {view.name(mover)} hit?", f"which shape does {view.name(mover)} run into?")
    return asked, target.shape


@template("interaction")
def overtakes(view: SceneView) -> Asked | None:
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
def faster(view: SceneView) -> Asked | None:
    rivals = _rivals(view)
    if rivals is None:
        return None
    behind, ahead = rivals
    quick = behind if view.scene.event == "overtaking" else ahead
    one, two = view.random.sample((behind, ahead), 2)
    choice = view.one_of("faster or slower", "slower or faster")
    return f"is {view.name(one)} {choice} than {view.name(two)}?", "faster" if one is quick else "slower"


@template("interaction")
def ahead_then(view: SceneView) -> Asked | None:
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


# ---- what they share -----------------------------------------------------------------------------------


def _events(scene: Scene) -> list[Thing]:
    """The objects that change, in the order in which they do."""
    return sorted((thing for thing in scene.things if thing.action in EVENTS), key=lambda thing: thing.at)


def _nothing_else(view: SceneView, events: list[Thing]) -> bool:
    """Is the view's object one of these, and does no other object do anything that might be called an event?"""
    return view.thing in events and all(thing in events or thing.action == "nothing" for thing in view.scene.things)


def _rivals(view: SceneView) -> tuple[Thing, Thing] | None:
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
