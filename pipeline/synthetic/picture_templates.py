"""Templates about what one picture shows."""

from vococache.pipeline.synthetic.scene import COLOURS, HELD_OUT_COLOURS, SHAPES, Scene, Thing
from vococache.pipeline.synthetic.template import NUMBERS, Asked, SceneView, Template, collecting

PICTURE_TEMPLATES: list[Template] = []
template = collecting(PICTURE_TEMPLATES)


@template("existence")
def exists(view: SceneView) -> Asked | None:
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


@template("existence")
def exists_shape(view: SceneView) -> Asked | None:
    shape = view.thing.shape if view.random.random() < 0.5 else None
    absent = [other for other in SHAPES if all(other != thing.shape for thing in view.scene.things)]
    asked = shape or view.random.choice(absent)
    return view.one_of(f"is there a {asked}?", f"does the video show a {asked}?"), "yes" if shape else "no"


@template("color")
def colour_of(view: SceneView) -> Asked | None:
    shape = view.thing.shape
    if view.thing.new_colour or not view.alone_in(lambda thing: thing.shape):
        return None
    return (
        view.one_of(
            f"what color is the {shape}?", f"what is the color of the {shape}?", f"which color is the {shape}?"
        ),
        view.thing.colour,
    )


@template("color")
def colour_beside(view: SceneView) -> Asked | None:
    where = _apart(view)
    if where is None or view.thing.new_colour:
        return None
    return view.one_of(f"what color is the object {where}?", f"which color is the thing {where}?"), view.thing.colour


@template("shape")
def shape_beside(view: SceneView) -> Asked | None:
    where = _apart(view)
    if where is None:
        return None
    return view.one_of(f"what shape is the object {where}?", f"which shape is the thing {where}?"), view.thing.shape


@template("shape")
def shape_of(view: SceneView) -> Asked | None:
    colour = view.thing.colour
    if any(colour in other.colours() for other in view.others()):
        return None
    asked = view.one_of(
        f"what shape is the {colour} object?", f"what is the {colour} thing?", f"which shape is {colour}?"
    )
    return asked, view.thing.shape


@template("count")
def count_all(view: SceneView) -> Asked | None:
    asked = view.one_of(
        "how many objects are there?", "how many shapes does the video show?", "how many things are there?"
    )
    return asked, NUMBERS[len(view.scene.things)]


@template("count")
def count_shape(view: SceneView) -> Asked | None:
    shape = view.thing.shape if view.random.random() < 0.75 else view.random.choice(SHAPES)
    plural = {"cross": "crosses"}.get(shape, f"{shape}s")
    number = sum(thing.shape == shape for thing in view.scene.things)
    return view.one_of(f"how many {plural} are there?", f"how many {plural} can you see?"), NUMBERS[number]


@template("count")
def count_colour(view: SceneView) -> Asked | None:
    colour = view.thing.colour if view.random.random() < 0.75 else view.random.choice(COLOURS)
    if any(colour in thing.colours() and thing.new_colour for thing in view.scene.things):
        return None
    number = sum(thing.colour == colour for thing in view.scene.things)
    return view.one_of(f"how many {colour} objects are there?", f"how many things are {colour}?"), NUMBERS[number]


@template("position")
def side_of(view: SceneView) -> Asked | None:
    (x, _), name = view.thing.centre(0), view.name(view.thing)
    if view.thing.legs or abs(x - 0.5) < 0.12:
        return None
    asked = view.one_of(f"is {name} on the left or on the right?", f"on which side is {name}, left or right?")
    return asked, "left" if x < 0.5 else "right"


@template("position")
def height_of(view: SceneView) -> Asked | None:
    (_, y), name = view.thing.centre(0), view.name(view.thing)
    if view.thing.legs or abs(y - 0.5) < 0.12:
        return None
    asked = view.one_of(f"is {name} at the top or at the bottom?", f"where is {name}, at the top or at the bottom?")
    return asked, "top" if y < 0.5 else "bottom"


@template("relation")
def beside(view: SceneView) -> Asked | None:
    other = _partner(view)
    if other is None or abs(view.thing.x - other.x) < 0.18:
        return None
    asked = f"is {view.name(view.thing)} to the left or to the right of {view.name(other)}?"
    return asked, "left" if view.thing.x < other.x else "right"


@template("relation")
def above(view: SceneView) -> Asked | None:
    other = _partner(view)
    if other is None or abs(view.thing.y - other.y) < 0.18:
        return None
    asked = f"is {view.name(view.thing)} above or below {view.name(other)}?"
    return asked, "above" if view.thing.y < other.y else "below"


@template("size")
def size_of(view: SceneView) -> Asked | None:
    if view.thing.new_size != view.thing.size:
        return None
    if view.thing.role and view.thing.size == "small" and view.random.random() < 0.6:
        return None  # most that meet are small
    name = view.name(view.thing)
    return view.one_of(f"is {name} small or large?", f"what size is {name}, small or large?"), view.thing.size


@template("size")
def larger(view: SceneView) -> Asked | None:
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


@template("background")
def pattern(view: SceneView) -> Asked | None:
    asked = view.one_of("what does the background look like?", "is the background plain, striped or checkered?")
    return asked, view.scene.background


@template("background")
def brightness(view: SceneView) -> Asked | None:
    asked = view.one_of("is the background bright or dark?", "is the video bright or dark?")
    return asked, "bright" if view.scene.bright else "dark"


# ---- what they share -----------------------------------------------------------------------------------


def _moving(scene: Scene) -> bool:
    return any(thing.legs for thing in scene.things)


def _apart(view: SceneView) -> str | None:
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


def _partner(view: SceneView) -> Thing | None:
    """Another object that stays, as the view's own does."""
    staying = [other for other in view.others() if not other.legs]
    return view.random.choice(staying) if staying and not view.thing.legs else None


def _only_shape(view: SceneView, thing: Thing) -> bool:
    return sum(other.shape == thing.shape for other in view.scene.things) == 1
