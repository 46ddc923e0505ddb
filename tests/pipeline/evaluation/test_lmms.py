"""lmms-eval's own evaluator on a VoCo model: its registry, tasks of both kinds, pictures, videos, text alone.

Skipped where lmms-eval is not installed; docs/evaluation.md says how to run it.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.filterwarnings("default")  # other people's

# Below the line that skips this file where lmms-eval is absent: hence E402.
from lmms_eval import evaluator  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from lmms_eval.tasks import TaskManager, get_task_dict  # noqa: E402

from vococache.model import load_model  # noqa: E402
from vococache.pipeline.evaluation.lmms import VoCo  # noqa: E402
from vococache.pipeline.synthetic.questions import questions  # noqa: E402
from vococache.pipeline.synthetic.render import frames  # noqa: E402
from vococache.pipeline.synthetic.scene import make_scene  # noqa: E402
from vococache.workers.reason import answer_text, question_ids  # noqa: E402

UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(path) for path in doc["pictures"]]

def files(doc):
    return list(doc["pictures"])

def nothing(doc):
    return []
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output}
doc_to_visual: !function utils.{show}
doc_to_text: "{text}"
doc_to_target: answer
{more}
"""
GENERATE = """
generation_kwargs: {max_new_tokens: 8, until: ["\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
COUNT = 12


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for number in range(COUNT):
        scene = make_scene(f"lmms {number}", still=True)
        path = folder / f"{number}.png"
        Image.fromarray(frames(scene, (0.0,), 60)[0]).save(path)
        question = questions(scene, 1, Random(number))[0]
        choices = sorted({question.answer, "yes", "no", "left", "two"})
        found.append(
            {"pictures": [str(path)], "question": question.text, "answer": question.answer, "choices": choices}
        )
    return found


def write_task(tmp_path: Path, docs: list[dict[str, Any]], **task: str) -> TaskManager:
    """One task, "ours", over `docs`."""
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "utils.py").write_text(UTILS)
    settings = {"name": "ours", "data": str(data), "show": "pictures", "text": "{{question}}", **task}
    (tmp_path / "ours.yaml").write_text(TASK.format(**settings))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def evaluated(tmp_path: Path, docs: list[dict[str, Any]], **task: str) -> dict[str, Any]:
    """The results of one task, run by lmms-eval."""
    found: dict[str, Any] = evaluator.simple_evaluate(
        model="voco",
        model_args="pretrained=synthetic",
        tasks=["ours"],
        task_manager=write_task(tmp_path, docs, **task),
        device="cpu",
        batch_size=1,
        log_samples=True,
        bootstrap_iters=0,
    )
    return found


def test_the_registry_finds_it_by_its_entry_point() -> None:
    assert get_model("voco") is VoCo


def test_generation(tmp_path: Path, docs: list[dict[str, Any]]) -> None:
    found = evaluated(tmp_path, docs, output="generate_until", more=GENERATE)
    model = load_model("synthetic")
    said = {sample["doc_id"]: sample["resps"][0][0] for sample in found["samples"]["ours"]}
    right = 0
    for number, doc in enumerate(docs):
        with Image.open(doc["pictures"][0]) as image:
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, 1, 60, 60, 3)
        with torch.inference_mode():
            cache = model.compress(model.pixel_values(pixels))
            (ids,) = model.generate_ids(cache, [question_ids(model, doc["question"])], 8).tolist()
        assert said[number] == answer_text(model, ids)
        right += said[number] == doc["answer"]
    assert found["results"]["ours"]["exact_match,none"] == pytest.approx(right / COUNT)
    assert right > COUNT / 2


def test_choices_are_ranked_by_their_likelihood(tmp_path: Path, docs: list[dict[str, Any]]) -> None:
    """lmms-eval's task makes the requests and judges the replies. Its evaluator does not come so far: 0.7.3 makes a
    text of each reply that is no text (`unwrap_generation_output`), whatever the model.
    """
    manager = write_task(tmp_path, docs, output="multiple_choice", more=CHOOSE)
    task = get_task_dict(["ours"], manager, "simple")["ours"]
    task.build_all_requests()
    ours = VoCo("synthetic", device="cpu")
    ours.task_dict["ours"] = task.dataset
    assert {request.request_type for request in task.instances} == {"loglikelihood"}
    replies = ours.loglikelihood(task.instances)
    assert len(replies) == sum(len(doc["choices"]) for doc in docs)
    model = load_model("synthetic", device="cpu")
    right = 0
    for number, doc in enumerate(docs):
        with Image.open(doc["pictures"][0]) as image:
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, 1, 60, 60, 3)
        losses = []
        for choice in doc["choices"]:
            asked, answer = question_ids(model, doc["question"]), model.encode_text(f" {choice}")
            with torch.inference_mode():
                cache = model.compress(model.pixel_values(pixels))
                logits = model.read(cache, torch.cat((asked, torch.tensor(answer)))[None])[0, len(asked) - 1 : -1]
            losses.append(-float(logits.log_softmax(-1)[range(len(answer)), answer].mean()))
        given = [
            reply
            for reply, request in zip(replies, task.instances, strict=True)
            if request.metadata["doc_id"] == number
        ]
        assert [loss for loss, _ in given] == pytest.approx(losses, abs=1e-4)
        best = doc["choices"][losses.index(min(losses))] == doc["answer"]
        assert task.process_results(doc, given)["acc"] == best
        right += best
    assert right > COUNT / 2


def test_several_pictures_videos_and_text_alone(tmp_path: Path, docs: list[dict[str, Any]]) -> None:
    from vococache.pipeline.synthetic.render import write_clip

    clip = tmp_path / "clip.mp4"
    write_clip(make_scene("lmms video"), clip)
    many = [{**docs[0], "pictures": docs[0]["pictures"] * 3}]
    for show, rows in (("pictures", many), ("files", [{**docs[0], "pictures": [str(clip)]}]), ("nothing", docs[:1])):
        folder = tmp_path / show
        folder.mkdir()
        found = evaluated(folder, rows, output="generate_until", more=GENERATE, show=show, text="<image>{{question}}")
        assert found["samples"]["ours"][0]["resps"][0][0]


def test_what_cannot_be_read_is_a_wrong_answer(tmp_path: Path, docs: list[dict[str, Any]]) -> None:
    rows = [docs[0], {**docs[1], "pictures": [str(tmp_path / "absent.mp4")]}]
    found = evaluated(tmp_path, rows, output="generate_until", more=GENERATE, show="files")
    assert found["samples"]["ours"][1]["resps"][0][0] == ""
