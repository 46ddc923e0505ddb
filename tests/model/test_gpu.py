"""The same numbers on a GPU. `make test-all` runs these where there is CUDA; GPU_TESTS_ON=cpu tries the tests."""

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import vococache
from vococache.model import varlen
from vococache.model.compiled import compile_layers
from vococache.model.float8 import CAPABILITY, FLOAT8
from vococache.model.generate import TOKENS_BETWEEN_LOOKS, GenerationOptions, generate
from vococache.model.layers import attend
from vococache.model.step import SAME_SHAPE, WARM_UPS
from vococache.pipeline.synthetic.questions import questions
from vococache.pipeline.synthetic.render import frames
from vococache.pipeline.synthetic.scene import LOOKS, make_scene

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
GOLDEN = Path(__file__).parent / "data" / "golden_a"
CASES = [f"k{k}_{newline}" for k in (1, 2, 4, 8) for newline in "ab"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_golden_cases(name: str, dtype: str) -> None:
    """The official code computed in float32: bfloat16 has 8 of its 24 bits."""
    case = np.load(GOLDEN / "cases" / f"{name}.npz")
    ids, k = case["input_ids"][0].tolist(), int(case["voco_num"])
    voco = ids.index(32000)
    model = vococache.load_model(GOLDEN, num_voco_tokens=k, newline_ids=ids[2:voco], dtype=dtype, device=DEVICE)
    cache = model.compress(torch.from_numpy(case["pixel_values"])[:, None])
    text = torch.tensor([ids[voco + k :]], device=DEVICE)
    logits = model.read(cache, text)[0, :, case["logits_cols"]].float().cpu().numpy()
    expected = case["logits_sub"][0, -text.shape[1] :]
    if dtype == "float32":
        assert np.abs(logits - expected).max() < 1e-3
        assert model.generate_ids(cache, text, 8)[0].tolist() == case["gen_ids"].tolist()
    else:
        assert np.linalg.norm(logits - expected) < 0.03 * np.linalg.norm(expected)


def test_answers_are_those_of_a_cpu() -> None:
    """The embedded model's, about clips of its world."""
    here, there = (vococache.load_model("synthetic", device=device, dtype="float32") for device in ("cpu", DEVICE))
    prompt, different = here.config.prompt, set()
    for number in range(8):
        scene = make_scene(f"gpu {number}")
        pictures = frames(scene, LOOKS, here.config.geometry.size)[:, None]
        asked = [prompt.template.replace("{question}", each.text) for each in questions(scene, 6, Random(number))]
        texts = [torch.tensor([*prompt.text_newline_ids, *here.encode_text(text)]) for text in asked]
        answers = []
        for model in (here, there):
            with torch.inference_mode():
                placed = model.place(model.compress(model.pixel_values(pictures)))
            answers.append(generate(model, placed, texts, 8, GenerationOptions()).ids)
        assert answers[0] == answers[1]
        different |= {tuple(ids) for ids in answers[0]}
    assert len(different) > 8


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recorded_step_gives_what_it_gave_before(
    sampling: dict[str, float], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAME_SHAPE, DEVICE, 64)
    model = vococache.load_model("synthetic", device=DEVICE, dtype=dtype)
    side = model.config.geometry.size
    pictures = np.random.default_rng(0).integers(0, 256, (8, 1, side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        placed = model.place(model.compress(model.pixel_values(pictures)))
    texts = [torch.arange(3, 3 + length) for length in (5, 9, 2)]

    def answers(count: int) -> list[list[int]]:
        return generate(model, placed, texts[:count], 100, GenerationOptions(**{"stop_ids": ()} | sampling)).ids  # type: ignore[arg-type]

    monkeypatch.setattr("vococache.model.step.WARM_UPS", 10**9)
    launched = {count: answers(count) for count in (1, 3)}
    assert all(step.recorded is None for step in placed.steps.values())
    monkeypatch.setattr("vococache.model.step.WARM_UPS", WARM_UPS)
    placed.steps.clear()
    for count in (1, 3, 1, 3):  # recorded, then only replayed
        assert answers(count) == launched[count]
    if DEVICE == "cuda":
        assert all(step.recorded is not None for step in placed.steps.values())


def test_answers_end_where_they_end_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vococache.load_model("synthetic", device=DEVICE, dtype="float32")
    placed = model.place(model.empty_cache())
    texts = [torch.arange(3, 3 + length) for length in (5, 9, 2)]
    free = generate(model, placed, texts, 40, GenerationOptions(stop_ids=())).ids
    stop = (free[0][5], free[1][20])
    for between in (1, 8):
        monkeypatch.setitem(TOKENS_BETWEEN_LOOKS, DEVICE, between)
        for ids, all_ids in zip(
            generate(model, placed, texts, 40, GenerationOptions(stop_ids=stop)).ids, free, strict=True
        ):
            ends = [index for index, token in enumerate(all_ids) if token in stop]
            assert ids == all_ids[: ends[0] + 1 if ends else 40]


@pytest.mark.parametrize(("dtype", "most"), [("float16", 0.02), ("bfloat16", 0.02), ("float8", 0.06)])
def test_fewer_bits_stay_near_float32(dtype: str, most: float) -> None:
    if dtype == FLOAT8 and DEVICE == "cuda" and torch.cuda.get_device_capability() < CAPABILITY:
        pytest.skip("this GPU has no float8 products")
    exact = vococache.load_model("synthetic", device=DEVICE, dtype="float32")
    fewer = vococache.load_model("synthetic", device=DEVICE, dtype=dtype)
    side = exact.config.geometry.size
    pictures = np.random.default_rng(0).integers(0, 256, (4, 1, side, side, 3), dtype=np.uint8)
    expected = exact.compress(exact.pixel_values(pictures)).data
    found = fewer.compress(fewer.pixel_values(pictures)).data.float()
    assert (found - expected).abs().mean() < most * expected.abs().mean()


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.02), ("float8", 0.06)])
def test_compiled_layers_stay_near_plain_ones(dtype: str, most: float, caplog: pytest.LogCaptureFixture) -> None:
    model = vococache.load_model("synthetic", device=DEVICE, dtype=dtype)
    side = model.config.geometry.size
    pictures = np.random.default_rng(0).integers(0, 256, (5, 1, side, side, 3), dtype=np.uint8)
    texts = [torch.arange(3, 3 + length) for length in (5, 9, 2)]

    def outcome(segments: int) -> tuple[torch.Tensor, list[list[int]]]:
        with torch.inference_mode():
            cache = model.compress(model.pixel_values(pictures[:segments]))
            ids = generate(model, model.place(cache), texts, 100, GenerationOptions(stop_ids=())).ids
        return cache.data.float(), ids

    plain = {segments: outcome(segments) for segments in (1, 5)}
    torch.compiler.reset()
    compile_layers(model)
    assert not [record for record in caplog.records if record.name.startswith("vococache")]
    for segments, (cache, ids) in plain.items():
        found = outcome(segments)
        assert (found[0] - cache).abs().mean() < most * cache.abs().mean()
        if dtype == "float32":
            assert found[1] == ids


def test_texts_of_a_batch_share_a_kernel_also_where_nothing_learns() -> None:
    for learns in (True, False):
        varlen.works.cache_clear()
        with torch.inference_mode(mode=not learns):
            assert varlen.works(torch.device(DEVICE), torch.bfloat16, 4, 4, 64) == (DEVICE == "cuda")


def test_plain_causal_attention_reaches_the_flash_kernel() -> None:
    model = vococache.load_model("synthetic", device=DEVICE, dtype="bfloat16")
    heads, groups, width = model.config.heads, model.config.kv_heads, model.config.head_dim
    query, key, value = (
        torch.randn(2, count, 40, width, device=DEVICE, dtype=torch.bfloat16) for count in (heads, groups, groups)
    )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses where that kernel cannot serve
        found = attend(query, key, value, None, width**-0.5)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attend(query, key, value, None, width**-0.5)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
