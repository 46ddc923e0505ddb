"""The Hugging Face Trainer with what VoCo needs: our batches, our checkpoints, the share of right answers."""

import csv
import logging
import warnings
from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from safetensors.torch import save_file
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from vococache.errors import InputError
from vococache.model.objective import Objective
from vococache.model.reader import own_weights
from vococache.model.voco import IGNORED_LABEL
from vococache.pipeline.training.answers import exact_match_share
from vococache.pipeline.training.arguments import checked
from vococache.pipeline.training.examples import collate
from vococache.pipeline.training.folder import LOG
from vococache.pipeline.training.lengths import ByLength, row_lengths
from vococache.pipeline.training.sharding import whole_root

logger = logging.getLogger(__name__)


class CsvLog(TrainerCallback):
    """Every logged figure as a line of `log.csv`: step, name, value."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG

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


class NothingLeft(Exception):
    """The checkpoint to go on from is that of the last step."""


class StopAtTheEnd(TrainerCallback):
    """Resumed from the checkpoint of the last step, the Trainer would add a step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raise `NothingLeft` there; the weights are loaded by now."""
        if state.global_step >= state.max_steps:
            raise NothingLeft


def run_to_the_end(trainer: Trainer, checkpoint: str | None) -> None:
    """Train, from the start or from a checkpoint."""
    with suppress(NothingLeft):
        trainer.train(resume_from_checkpoint=checkpoint)


class Arguments(TrainingArguments):
    """A process uses one GPU: DataParallel, which the Trainer would take for several, cannot cut our batches."""

    @property
    def n_gpu(self) -> int:
        """None, or one."""
        return min(1, int(super().n_gpu))


class VoCoTrainer(Trainer):
    """The Trainer over `Objective`: its shards, its order, its figures, its checkpoints."""

    def create_accelerator_and_postprocess(self) -> None:
        """Shard where FSDP is asked for, between processes on CPUs as well."""
        if self.args.fsdp:
            state = PartialState()
            if state.distributed_type == DistributedType.MULTI_CPU:
                # On CPUs accelerate would ignore FSDP without a word.
                state.distributed_type = DistributedType.MULTI_GPU
            if self.args.bf16:
                # accelerate's own policy rounds the loss and the sum of the gradients to bfloat16 too.
                policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
                self.args.fsdp_plugin_args["mixed_precision_policy"] = policy
            # Of the keys and values that each layer returns: nothing changes them in place.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        super().create_accelerator_and_postprocess()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(row_lengths(rows), together, lambda: self.args.seed + int(self.state.epoch or 0))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The Trainer's figures, and the share of right answers among those that the model writes itself."""
        figures: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        model: Any = self.model
        # Beside a base in half precision what learns is in float32: the two multiply in autocast alone.
        mixed = len({weight.dtype for weight in model.parameters()}) > 1
        with whole_root(model), self.accelerator.autocast() if mixed else nullcontext():
            share = exact_match_share(model.eval().voco, rows)
        written = {f"{metric_key_prefix}_exact_match": share}
        self.log(written)
        return figures | written

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what learns, once: tied embeddings appear under two names. Shards are written by accelerate."""
        if self.is_fsdp_enabled or not self.args.should_save:
            return
        assert self.model is not None
        state = own_weights(self.model.state_dict())
        frozen = {name for name, weight in self.model.named_parameters() if not weight.requires_grad}
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        learned = {name: tensor.contiguous() for name, tensor in state.items() if name not in frozen}
        save_file(learned, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint lacks what does not learn, which the start brings, and second names of what does."""


def answer_accuracy(prediction: Any) -> dict[str, float]:
    """The share of labelled tokens that are the likeliest, and of answers of which every token is.

    An answer is a run of labelled tokens: between two of them there is always a question.
    """
    predicted, labels = (np.pad(np.asarray(ids), ((0, 0), (1, 0)), constant_values=IGNORED_LABEL)
                         for ids in (prediction.predictions, prediction.label_ids))  # fmt: skip
    asked = labels != IGNORED_LABEL
    wrong = (predicted != labels)[asked]
    starts = asked & ~np.roll(asked, 1, axis=1)
    answers = np.bincount(starts.ravel().cumsum()[asked.ravel()] - 1, weights=wrong)
    return {"token_accuracy": float(1 - wrong.mean()), "answer_accuracy": float((answers == 0).mean())}


def computes_bfloat16() -> bool:
    """Does this CPU have products in bfloat16? One without takes fifteen times as long for them as for float32."""
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def training_arguments(trainer: dict[str, Any], out: Path, seed: int) -> TrainingArguments:
    """The Trainer's arguments: the settings' own, and what our batches need. Raises `InputError`."""
    values: dict[str, Any] = {"report_to": ["tensorboard"], "use_cpu": not torch.cuda.is_available()}
    values |= deepcopy(checked(trainer))  # `fsdp_config` is changed in place
    if values.get("bf16") and values["use_cpu"] and not computes_bfloat16():
        logger.warning("this CPU has no bfloat16 products: training in float32 instead of bf16")
        values["bf16"] = False
    if values.get("fsdp"):
        # One process loads the weights, the others get their shards from it.
        values["fsdp_config"] = {"cpu_ram_efficient_loading": True} | (values.get("fsdp_config") or {})
    try:
        arguments = Arguments(output_dir=str(out), seed=seed, remove_unused_columns=False, **values)
    except (TypeError, ValueError) as error:
        raise InputError(f"the trainer's settings do not fit: {error}") from None
    accelerator: Any = arguments.accelerator_config
    if arguments.fsdp and accelerator.gradient_accumulation_kwargs is None:
        # Gradients of all weights in float32, 27 GB of a 7B model, would wait in each process for the last batch.
        accelerator.gradient_accumulation_kwargs = {"sync_each_batch": True}
    if arguments.world_size == 1 and (found := 0 if values["use_cpu"] else torch.cuda.device_count()) > 1:
        logger.warning("of %d GPUs one is used: `--workers`, or torchrun, starts a process for each", found)
    return arguments


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
        callbacks=[CsvLog(Path(str(arguments.output_dir))), StopAtTheEnd()],
    )
