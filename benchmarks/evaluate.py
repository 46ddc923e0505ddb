"""Questions a second: a video's questions in one pass over its cache, one by one, and from pixels each time.

`python benchmarks/evaluate.py [--quick]`. 100 synthetic videos with 20 questions each (quick: 10), the embedded model,
from a store. "From pixels" compresses frames again for each question (decoding not counted).
"""

import argparse
import tempfile
import time
from pathlib import Path
from random import Random

from common import report

ASKED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    clips = 10 if parser.parse_args().quick else 100
    from vococache.model.generate import GenerationOptions, generate
    from vococache.pipeline.synthetic.questions import all_questions
    from vococache.pipeline.synthetic.render import frames
    from vococache.pipeline.synthetic.scene import LOOKS, split_scenes
    from vococache.pipeline.synthetic.trial import ingest_clips
    from vococache.workers.answering import AnswerStage, VideoQuestions
    from vococache.workers.reason import question_ids

    scenes = split_scenes("speed", clips)
    asked = {name: [q.text for q in all_questions(scene, Random(0))] for name, scene in scenes.items()}
    asked = {name: (texts * ASKED)[:ASKED] for name, texts in asked.items()}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ingest_clips(scenes, Path(folder) / "clips", store)
        stage = AnswerStage(store_url=store, model="synthetic", dtype=None, device=None, tokens=None, max_new_tokens=16)
        reader = stage.setup()
        began = time.perf_counter()
        together = {
            name: [reply.answer for reply in stage.process(VideoQuestions(name, texts))]
            for name, texts in asked.items()
        }
        batched = time.perf_counter() - began
        few = dict(list(asked.items())[: max(1, clips // 10)])  # the slow ways on a tenth
        began = time.perf_counter()
        singly = {
            name: [stage.process(VideoQuestions(name, [text]))[0].answer for text in texts]
            for name, texts in few.items()
        }
        one_by_one = time.perf_counter() - began
        model = reader.model
        began = time.perf_counter()
        for name, texts in few.items():
            pictures = frames(scenes[name], LOOKS, model.config.geometry.size)[:, None]
            for text in texts:
                placed = model.place(model.compress(model.pixel_values(pictures)))
                generate(model, placed, [question_ids(reader.model, text)], 16, GenerationOptions())
        from_pixels = time.perf_counter() - began
    same = sum(a == b for name in few for a, b in zip(together[name], singly[name], strict=True))
    rates = {
        "batched": clips * ASKED / batched,
        "one by one": len(few) * ASKED / one_by_one,
        "from pixels": len(few) * ASKED / from_pixels,
    }
    rows: list[tuple[object, ...]] = [("", "questions a second", "times as fast, batched")]
    rows += [(name, f"{rate:.1f}", f"{rates['batched'] / rate:.1f}") for name, rate in rates.items()]
    result = {"videos": clips, "asked": ASKED, "rates": rates, "same_answers": same / (len(few) * ASKED)}
    ratios = {f"batched over {way}": rates["batched"] / rates[way] for way in ("one by one", "from pixels")}
    report("evaluate", rows, result, ratios)


if __name__ == "__main__":
    main()
