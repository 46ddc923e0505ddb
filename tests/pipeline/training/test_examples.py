"""Texts and batches: what is trained on is what `ask` would feed, and only answers and stops are labelled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vococache.model.objective import Objective
from vococache.model.scratch import BOS, EOS, byte_tokenizer, random_model, small_config
from vococache.model.voco import IGNORED_LABEL, VoCoModel
from vococache.pipeline.training.examples import Example, Text, Turn, collate, encode_turns
from vococache.storage import open_store
from vococache.workers.compress import store_header
from vococache.workers.reason import ReasonStage, question_ids

TURNS = [("What moves?", "a red ball"), ("Where to?", "left"), ("Then?", "it stops")]
FIRST, SECOND, THIRD = TURNS


def make_model(tokenizer: Any) -> VoCoModel:
    model = random_model(small_config(tokenizer), seed=0)
    model.tokenizer = tokenizer
    return model


def merging_tokenizer() -> Any:
    """A tokenizer that merges whatever stands side by side: a question's end with the answer behind it."""
    special = [BOS, EOS, "<voco>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{question}\n {answer}" for question, answer in TURNS] * 20
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


@pytest.fixture(scope="module")
def model() -> VoCoModel:
    return make_model(byte_tokenizer())


@pytest.fixture
def stage(model: VoCoModel, tmp_path: Path) -> ReasonStage:
    return ReasonStage(model, open_store(str(tmp_path / "store"), "a", header=store_header(model)))


def encoded(model: VoCoModel, turns: Sequence[Turn]) -> Text:
    return encode_turns(model.tokenizer, model.config.prompt, turns)


def labelled(model: VoCoModel, text: Text) -> str:
    return str(model.tokenizer.decode([label for label in text.labels if label != IGNORED_LABEL]))


class TestEncodeTurns:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_before_each_answer_stands_what_ask_feeds(self, model: VoCoModel, stage: ReasonStage, count: int) -> None:
        ids = encoded(model, TURNS[:count]).ids
        for index in range(count):
            question, answer = TURNS[index]
            asked = question_ids(stage.model, question, TURNS[:index]).tolist()
            reply = [*model.encode_text(f" {answer}"), *model.config.prompt.stop_ids]
            assert ids[: len(asked) + len(reply)] == asked + reply
        assert len(ids) == len(asked) + len(reply)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_answers_and_stops_are_labelled_and_nothing_else(self, model: VoCoModel, count: int) -> None:
        text = encoded(model, TURNS[:count])
        assert labelled(model, text) == "".join(f" {answer}</s>" for _, answer in TURNS[:count])
        assert all(label in (IGNORED_LABEL, token) for label, token in zip(text.labels, text.ids, strict=True))

    def test_a_follow_up_without_the_stop_token_is_learned_to_stop_before(self, model: VoCoModel) -> None:
        """`ask` puts no stop token there, yet generation has to end: the label differs from what follows."""
        prompt = replace(model.config.prompt, followup="|{question}\n")
        text = encode_turns(model.tokenizer, prompt, TURNS[:2])
        assert labelled(model, text) == " a red ball</s> left</s>"
        assert "</s>" not in model.tokenizer.decode(text.ids[:-1])

    def test_text_alone_begins_with_bos_where_the_prompt_has_one(self, model: VoCoModel) -> None:
        prompt = model.config.prompt
        behind = encoded(model, TURNS)
        alone = encode_turns(model.tokenizer, prompt, TURNS, alone=True)
        newline = len(prompt.text_newline_ids)
        assert alone.ids == [prompt.bos_id, *behind.ids[newline:]]
        assert alone.labels == [IGNORED_LABEL, *behind.labels[newline:]]
        without = encode_turns(model.tokenizer, replace(prompt, bos_id=None), TURNS, alone=True)
        assert (without.ids, without.labels) == (alone.ids[1:], alone.labels[1:])

    def test_without_stop_tokens_only_answers_are_labelled(self, model: VoCoModel) -> None:
        text = encode_turns(model.tokenizer, replace(model.config.prompt, stop_ids=()), TURNS[:2])
        assert labelled(model, text) == " a red ball left"

    def test_braces_in_a_question_are_text(self, model: VoCoModel) -> None:
        text = encoded(model, [("{question} {0}", "yes")])
        assert model.tokenizer.decode(text.ids) == "\n{question} {0}\n yes</s>"

    def test_an_empty_answer_is_only_a_stop(self, model: VoCoModel) -> None:
        assert labelled(model, encoded(model, [("Is it?", ""), SECOND])) == "</s> left</s>"

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_a_tokenizer_that_merges_across_the_boundary(self, tmp_path: Path, count: int) -> None:
        model = make_model(merging_tokenizer())
        together = model.encode_text("What moves?\n a red ball")
        asked = model.encode_text("What moves?\n")
        assert together[: len(asked)] != asked, "it merges"
        text = encoded(model, TURNS[:count])
        assert labelled(model, text) == "".join(f" {answer}</s>" for _, answer in TURNS[:count])
        stage = ReasonStage(model, open_store(str(tmp_path / "store"), "a", header=store_header(model)))
        first = question_ids(stage.model, FIRST[0]).tolist()
        assert text.ids[: len(first)] == first


def frames(segments: int, seed: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (segments, 1, size, size, 3), dtype=np.uint8)


class TestCollate:
    def test_rows_are_padded_on_the_right(self) -> None:
        batch = collate([Example([Text([5, 6, 7], [-100, 6, 7])]), Example([Text([8], [-100])])])
        assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
        assert {batch[name].dtype for name in ("input_ids", "attention_mask", "labels")} == {torch.long}

    def test_texts_of_an_example_are_numbered(self) -> None:
        batch = collate(
            [Example([Text([5, 6], [-100, 6]), Text([7, 8, 9], [-100, -100, 9])]), Example([Text([1], [-100])])]
        )
        assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [1, 0, 0, 0, 0]]
        assert batch["attention_mask"].tolist() == [[1, 1, 2, 2, 2], [1, 0, 0, 0, 0]]
        assert batch["labels"].tolist() == [[-100, 6, -100, -100, 9], [-100] * 5]

    def test_frames_of_all_rows_follow_each_other_and_text_has_none(self, model: VoCoModel) -> None:
        text = Text([1], [-100])
        first, last = frames(2, 0), frames(3, 1)
        batch = collate([Example([text], first), Example([text]), Example([text], last)])
        assert batch["segments"] == [2, 0, 3]
        assert np.array_equal(batch["frames"].numpy(), np.concatenate([first, last]))
        assert batch["frames"].dtype == torch.uint8
        assert "cache" not in batch

    def test_caches(self) -> None:
        text = Text([1], [-100])
        cache = np.random.default_rng(0).standard_normal((2, 4, 2, 4, 2, 16), np.float32)
        batch = collate([Example([text]), Example([text], cache=cache)])
        assert batch["segments"] == [0, 2]
        assert np.array_equal(batch["cache"].numpy(), cache)
        assert "frames" not in batch

    def test_a_batch_of_text_alone_has_a_loss(self, model: VoCoModel) -> None:
        batch = collate([Example([encoded(model, [turn])]) for turn in TURNS])
        assert batch["segments"] == [0, 0, 0]
        assert len(batch["frames"]) == 0
        assert torch.isfinite(Objective(model)(**batch)["loss"])

    def test_a_batch_has_the_loss_of_its_rows(self, model: VoCoModel) -> None:
        """Padding, packing and mixing change nothing."""
        rows = [
            Example([encoded(model, TURNS)], frames(2, 0)),
            Example([encoded(model, [SECOND])]),
            Example([encoded(model, [FIRST]), encoded(model, [THIRD])], frames(1, 1)),
        ]
        objective = Objective(model)
        together = objective(**collate(rows), num_items_in_batch=1)["loss"]
        alone = [Example([text], row.frames) for row in rows for text in row.texts]
        apart = sum(objective(**collate([row]), num_items_in_batch=1)["loss"] for row in alone)
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=0)

    def test_a_cache_has_the_loss_of_its_frames(self, model: VoCoModel) -> None:
        seen, text = frames(2, 0), encoded(model, TURNS)
        cache = model.compress(model.pixel_values(seen)).data.numpy()
        objective = Objective(model)
        losses = [objective(**collate([row]))["loss"] for row in (Example([text], seen), Example([text], cache=cache))]
        torch.testing.assert_close(*losses)
