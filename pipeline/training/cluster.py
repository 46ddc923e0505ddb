"""Data-parallel training over a Ray cluster, with Ray Train: the same `train`, one process a worker."""

import json
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from vococache.errors import InputError
from vococache.pipeline.training.job import FIGURES, train
from vococache.pipeline.training.settings import TrainSettings
from vococache.workers.cluster.runtime import start_ray


def train_on_ray(
    settings: TrainSettings, out: Path, *, workers: int, address: str | None = None, resume: bool = False
) -> dict[str, float]:
    """`train` on `workers` processes, each with a GPU where the cluster has any.

    On several nodes `out`, the model and the data must be on a file system that all of them share. Returns the last
    evaluation's figures. Raises `InputError` where the cluster is too small.
    """
    ours = start_ray(address)
    try:
        resources = ray.cluster_resources()
        gpu = resources.get("GPU", 0) > 0
        unit = "GPU" if gpu else "CPU"
        if resources.get(unit, 0) < workers:
            raise InputError(
                f"{workers} workers need a {unit} each, but the Ray cluster has {resources.get(unit, 0):g}: use"
                " fewer workers"
            )
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"settings": settings, "out": str(out.absolute()), "resume": resume},
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=ray.train.RunConfig(name="ray", storage_path=str(out.absolute())),
        )
        trainer.fit()
        figures: dict[str, float] = json.loads((out / FIGURES).read_text())
        return figures
    finally:
        if ours:
            ray.shutdown()


def _loop(config: dict[str, Any]) -> None:
    """One worker's part. Ray Train has set up the process group that the Hugging Face Trainer finds."""
    train(config["settings"], Path(config["out"]), resume=config["resume"])
