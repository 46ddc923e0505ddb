"""Inventories list every object by its place, and tie no attribute to another."""

from random import Random

from vococache.pipeline.synthetic.inventories import INVENTORIES, inventories, place
from vococache.pipeline.synthetic.scene import COLOURS, LOOKS, SHAPES, make_scene


def test_every_object_is_listed_at_its_place() -> None:
    for number in range(200):
        scene = make_scene(f"listed {number}")
        for question, answer in inventories(scene, 9, Random(number)):
            parts = answer.split(", ")
            places = sorted(part[:3] for part in parts)
            assert places == sorted(place(thing, 0.0) for thing in scene.things), question
            said = {word for part in parts for word in part.split()[2:]}
            assert not (said & set(COLOURS) and said & set(SHAPES)), "never a shape with a colour"


def test_what_is_listed_is_true() -> None:
    for number in range(200):
        scene = make_scene(f"listed {number}")
        answers = dict(inventories(scene, 9, Random(number)))
        distinct = len({place(thing, 0.0) for thing in scene.things}) == len(scene.things)
        if not distinct or "what happens where?" not in answers:
            continue
        of = {place(thing, 0.0): thing for thing in scene.things}
        for part in answers["which shapes are where?"].split(", "):
            assert of[part[:3]].shape == part[4:]
        for part in answers["which colors are where at the end?"].split(", "):
            assert of[part[:3]].colour_at(LOOKS[-1]) == part[4:]
        for part in answers["what happens where?"].split(", "):
            thing, words = of[part[:3]], part[4:].split()
            for look in (int(word) for word in words if thing.hidden and word.isdigit()):
                assert not thing.visible(LOOKS[look])
            if thing.at:
                before, after = thing.at - LOOKS[int(words[-1]) - 1], LOOKS[int(words[-1])] - thing.at
                assert before > 0 <= after
            if thing.legs:
                assert part.endswith(f"to {place(thing, LOOKS[-1])}")


def test_pictures_are_asked_nothing_about_time() -> None:
    scene = make_scene("listed", still=True)
    asked = [question for question, _ in inventories(scene, 9, Random(0))]
    assert sorted(asked) == sorted(question for question, (of_clips, _) in INVENTORIES.items() if not of_clips)
    assert len(inventories(scene, 1, Random(0))) == 1
    assert inventories(scene, 0, Random(0)) == []
