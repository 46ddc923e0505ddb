"""Questions about scenes with their true answers, in the style of MSVD-QA and ActivityNet-QA: one or two words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from vococache.pipeline.synthetic.clip_templates import CLIP_TEMPLATES
from vococache.pipeline.synthetic.picture_templates import PICTURE_TEMPLATES
from vococache.pipeline.synthetic.scene import (
    ACTIONS,
    COLOURS,
    HELD_OUT_ACTIONS,
    HELD_OUT_COLOURS,
    SHAPES,
    Scene,
    Thing,
    held_out_things,
)
from vococache.pipeline.synthetic.template import SceneView, Template

PREFERENCE = {
    "motion": 3, "change": 3, "order": 6, "times": 6, "interaction": 4, "activity": 2, "relation": 3, "position": 2,
    "existence": 0.7, "size": 0.7, "background": 0.5,
}  # fmt: skip
# In training, what single pictures teach soon is asked less, and what only time tells more.
TEACHING_PREFERENCE = {
    "order": 15, "times": 12, "when": 12, "interaction": 7, "change": 6, "motion": 4, "activity": 2, "shape": 2,
    "relation": 1.5, "count": 0.7, "position": 0.5, "existence": 0.4, "color": 0.3, "size": 0.2, "background": 0.05,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, what kind it is, and the template it came from."""

    text: str
    answer: str
    type: str
    template: str


def all_questions(
    scene: Scene, random: Random, *, about: Iterable[Thing] | None = None, more: Sequence[Template] = ()
) -> Iterator[Question]:
    """One question of each template (and of `more`) that fits the scene, about objects chosen at random (`about`:
    among these)."""
    still = not scene.event and all(thing.action == "nothing" for thing in scene.things)
    candidates = list(scene.things if about is None else about)
    for template in PICTURE_TEMPLATES if still else [*PICTURE_TEMPLATES, *CLIP_TEMPLATES, *more]:
        for thing in random.sample(candidates, len(candidates)):
            asked = template.ask(SceneView(scene, thing, random))
            if asked is not None:
                yield Question(*asked, template.type, template.name)
                break


def questions(
    scene: Scene,
    count: int,
    random: Random,
    *,
    teaching: bool = False,
    colours: bool = True,
    more: Sequence[Template] = (),
) -> list[Question]:
    """Up to `count` questions of different templates; of a compositional scene, about its held-out objects.

    Types that few scenes allow are preferred where a scene does (`PREFERENCE`). `teaching`: up to two of a template, by
    `TEACHING_PREFERENCE`, and none whose text alone teaches that a held-out combination does not exist. Without
    `colours`: none with a colour's name in it. `more`: templates beside those of a test.
    """
    about = list(held_out_things(scene)) or None
    found = list(all_questions(scene, random, about=about, more=more))
    preference = PREFERENCE
    if teaching:
        found = list(dict.fromkeys([*found, *all_questions(scene, random, about=about, more=more)]))
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
