"""What a question template is, and what it looks at.

A template is a function that gives a question and its answer wherever a scene lets it be asked without doubt.
Yes-no questions and questions between two alternatives are asked either way round with equal chance, so that the
question alone says nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vococache.pipeline.synthetic.scene import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class SceneView:
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
Ask = Callable[[SceneView], Asked | None]


@dataclass(frozen=True, slots=True)
class Template:
    """One way to ask: its name, the type of its questions, and what it asks of a view (None: nothing)."""

    name: str
    type: str
    ask: Ask


def collecting(templates: list[Template]) -> Callable[[str], Callable[[Ask], Ask]]:
    """A decorator, `@template(TYPE)`, that adds a function to `templates` under its own name."""

    def template(kind: str) -> Callable[[Ask], Ask]:
        def add(function: Ask) -> Ask:
            templates.append(Template(function.__name__, kind, function))
            return function

        return add

    return template
