"""The Hugging Face Trainer with what VoCo needs: our batches, our checkpoints, the share of right answers."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback, TrainingArguments

from vococache.model.objective import Objective
from vococache.model.reader import own_weights
from vococache.model.voco import IGNORED_LABEL
from vococache.pipeline.training.examples import collate


class CsvLog(TrainerCallback):
    """Every logged figure as a line of `log.csv`: step, name, value."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.csv"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Append the figures."""
        if not state.is_world_process_zero or not logs:
            return
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(("step", "name", "value"))
            writer.writerows((state.global_step, name, value) for name, value in logs.items())


class VoCoTrainer(Trainer):
    """Saves each weight once: a LoRA reader's base and tied embeddings appear under two names."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.model is not None
        super()._save(output_dir, own_weights(self.model.state_dict() if state_dict is None else state_dict))


def answer_accuracy(prediction: Any) -> dict[str, float]:
    """Share of rows' labelled tokens, and of whole rows, that the likeliest ids match."""
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    asked = labels != IGNORED_LABEL
    right = (predicted == labels) & asked
    return {"token_accuracy": float(right.sum() / max(1, asked.sum()))}


def make_trainer(
    objective: Objective, arguments: TrainingArguments, train: Any, evaluate: Any | None = None
) -> Trainer:
    """A Trainer over `Example` data sets."""
    return VoCoTrainer(
        model=objective,
        args=arguments,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=evaluate,
        compute_metrics=answer_accuracy,
        callbacks=[CsvLog(Path(str(arguments.output_dir)))],
    )
