"""Long videos: scenes one after the other, among which each of some needles is in one scene alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random

from vococache.pipeline.synthetic.questions import Question, all_questions
from vococache.pipeline.synthetic.render import SIDE, Pixels, frames
from vococache.pipeline.synthetic.scene import COLOURS, HELD_OUT_COLOURS, SECONDS, SHAPES, Scene, Thing, make_scene

SLOWER = 2  # than a clip: a frame a second of a reel shows what a clip's two do
SCENE_SECONDS = SLOWER * SECONDS
FPS = 2  # of the file
ASKED = 4  # questions about each needle


@dataclass(frozen=True, slots=True)
class Needle:
    """An object whose colour and shape come together in one scene alone: which, when (seconds), what is asked."""

    thing: Thing
    scene: int
    start: float
    end: float
    questions: tuple[Question, ...]

    @property
    def name(self) -> str:
        return f"a {self.thing.colour} {self.thing.shape}"


@dataclass(frozen=True, slots=True)
class Reel:
    """Scenes in their order, of 8 s each but the first, and the needles among them."""

    scenes: tuple[Scene, ...]
    lead: float  # seconds that the first scene lasts
    needles: tuple[Needle, ...]

    @property
    def seconds(self) -> float:
        return self.lead + (len(self.scenes) - 1) * SCENE_SECONDS

    def start(self, scene: int) -> float:
        """When a scene starts, in seconds."""
        return 0.0 if scene == 0 else self.lead + (scene - 1) * SCENE_SECONDS


def make_reel(seed: int, minutes: float, needles: int) -> Reel:
    """A reel of that length. The first scene is cut short at random: no grid of windows falls on the others.

    All other scenes share a needle's colour or its shape, never both. A needle's questions name both.
    """
    random = Random(f"reel {seed}")
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES if (shape, colour) not in HELD_OUT_COLOURS]
    wanted = random.sample(names, needles)
    count = max(needles + 1, round(minutes * 60 / SCENE_SECONDS))
    places = sorted(random.sample(range(1, count), needles))
    random.shuffle(wanted)
    holding = dict(zip(places, wanted, strict=True))
    lead = float(random.randrange(1, int(SCENE_SECONDS)))
    scenes, found = [], []
    for number in range(count):
        name = holding.get(number)
        scene, thing, asked = _scene(f"reel {seed} {number}", set(wanted), name)
        scenes.append(scene)
        if thing is not None:
            start = lead + (number - 1) * SCENE_SECONDS
            found.append(Needle(thing, number, start, start + SCENE_SECONDS, asked))
    return Reel(tuple(scenes), lead, tuple(found))


def _scene(
    seed: str, wanted: set[tuple[str, str]], name: tuple[str, str] | None
) -> tuple[Scene, Thing | None, tuple[Question, ...]]:
    """A scene that shows of all the `wanted` names `name` alone, or none; its object, and what is asked about that."""
    attempt = 0
    while True:
        attempt += 1
        scene = make_scene(f"{seed} {attempt}")
        shown = {(colour, thing.shape) for thing in scene.things for colour in thing.colours()} & wanted
        if shown != ({name} if name else set()):
            continue
        if name is None:
            return scene, None, ()
        things = [thing for thing in scene.things if (thing.colour, thing.shape) == name]
        if not things:  # it only becomes so
            continue
        asked = questions_about(scene, things[0])
        if len(asked) >= ASKED:
            return scene, things[0], asked


def questions_about(scene: Scene, thing: Thing) -> tuple[Question, ...]:
    """Up to `ASKED` questions of different templates that name the object by its colour and shape."""
    found: dict[str, Question] = {}
    for attempt in range(8):
        for question in all_questions(scene, Random(f"{scene.seed} asked {attempt}"), about=[thing]):
            if f"{thing.colour} {thing.shape}" in question.text and question.type != "existence":
                found.setdefault(question.template, question)
    kept = list(found.values())
    return tuple(Random(f"{scene.seed} chosen").sample(kept, min(ASKED, len(kept))))


def write_reel(reel: Reel, path: Path) -> Path:
    """The reel as a video file: H.264, 128 x 128, 2 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "1", "crf": "22"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for index, pixels in enumerate(pictures(reel)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def pictures(reel: Reel) -> Iterator[Pixels]:
    """The reel's frames, in order."""
    for number, scene in enumerate(reel.scenes):
        seconds = reel.lead if number == 0 else SCENE_SECONDS
        yield from frames(scene, [index / FPS / SLOWER for index in range(int(seconds * FPS))], SIDE)
