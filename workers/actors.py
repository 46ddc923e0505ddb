"""The stages as Ray Data actors. The only file of this folder that knows Ray.

Ray Data executes: actor pools, streaming, backpressure and retries are its own. What is ours is three facts:
a chunk is a block (or a whole video would be decoded before its first chunk is compressed), fractional CPUs (or
the pools starve each other on a small machine), and one torch thread an actor (or the bits would depend on
the machine).
"""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import End, Row, VideoTask

from vococache.errors import InputError
from vococache.storage import ChunkReceipt, StoreHeader, open_store
from vococache.workers.compress import Compressor, CompressStage, store_header

# Of a CPU; an actor's real use is bounded by its threads. Two full pools take half of the machine's count, so
# other tasks of a shared cluster are never starved.
ACTOR_CPUS = 0.25
# Enough for every actor to have a chunk at hand and another on its way.
OBJECT_STORE_BYTES = 512 << 20

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pools:
    """How many actors, and of what: at most `size` of each stage; `gpus` of a GPU for each compress actor."""

    size: int
    gpus: float


def start_ray(address: str | None) -> bool:
    """Connect to a cluster, or start a local Ray without dashboard. True if it is ours to shut down."""
    if ray.is_initialized():
        return False
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None
    return True


def choose_pools(device: str | None) -> Pools:
    """Pools that fill the cluster as it stands; an autoscaling one grows to them."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if device is None:
        device = "cuda" if gpus else "cpu"
    cpus = max(1, int(resources.get("CPU", 1)))
    return Pools(size=max(cpus, gpus), gpus=1 if device.startswith("cuda") else 0)


def stop_ray() -> None:
    """Stop the local Ray, or leave the cluster."""
    ray.shutdown()


def describe_compressor(compressor: Compressor, device: str | None) -> StoreHeader:
    """The header that `compressor` gives a store."""
    return store_header(compressor.load(device))


def describe_compressor_remotely(compressor: Compressor, device: str | None) -> StoreHeader:
    """The same, found out where the compress actors will run: the driver may have no GPU, nor the memory."""
    task = ray.remote(num_cpus=ACTOR_CPUS, num_gpus=choose_pools(device).gpus)(describe_compressor)
    header: StoreHeader = ray.get(task.remote(compressor, device))
    return header


def check_store_visible(store_url: str) -> None:
    """Refuse a store that some node of the cluster cannot open: its caches would be lost there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    driver = open_store(store_url).header.fingerprint
    checks = [
        ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))(_sees).remote(
            store_url, driver
        )
        for node in nodes
    ]
    if blind := [name for name, sees in ray.get(checks) if not sees]:
        raise InputError(
            f"store {store_url} is not visible on node {', '.join(blind)}: expected a shared path or an object store"
            " (s3://...) that every node can write"
        )


def _sees(store_url: str, fingerprint: str) -> tuple[str, bool]:
    try:
        return socket.gethostname(), open_store(store_url, "a").header.fingerprint == fingerprint
    except OSError:
        return socket.gethostname(), False


def run_stages(tasks: Sequence[VideoTask], decode: DecodeStage, compress: CompressStage, pools: Pools) -> Iterator[Row]:
    """Run both stages over `tasks`, streaming; rows come back without frames, in no particular order."""
    context = DataContext.get_current()
    context.target_max_block_size = 1  # every row its own block: a chunk goes on as soon as it is decoded
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = (
        ray.data.from_items([asdict(task) for task in tasks], override_num_blocks=len(tasks))
        .flat_map(
            _DecodeActor,
            fn_constructor_args=(decode,),
            compute=ActorPoolStrategy(min_size=1, max_size=pools.size, max_tasks_in_flight_per_actor=1),
            num_cpus=ACTOR_CPUS,
        )
        .map(
            _CompressActor,
            fn_constructor_args=(compress,),
            compute=ActorPoolStrategy(min_size=1, max_size=pools.size, max_tasks_in_flight_per_actor=2),
            num_cpus=ACTOR_CPUS,
            num_gpus=pools.gpus or None,
        )
    )
    for block in dataset.iter_rows():
        yield from_block(block)


class _DecodeActor:
    def __init__(self, stage: DecodeStage) -> None:
        self.stage = stage
        stage.setup()

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for row in self.stage.process(VideoTask(**task)):
            yield to_block(row)


class _CompressActor:
    def __init__(self, stage: CompressStage) -> None:
        import torch

        torch.set_num_threads(1)
        self.stage = stage
        stage.setup()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        return to_block(self.stage.process(from_block(block)))


def to_block(row: Row) -> dict[str, Any]:
    """A row as Ray Data carries it: arrays zero-copy, the rest as one JSON text."""
    facts = {
        "video": row.video,
        "attempt": row.attempt,
        "index": row.index,
        "intent": row.intent,
        "receipt": None if row.receipt is None else asdict(row.receipt),
        "end": None if row.end is None else asdict(row.end),
        "error": row.error,
    }
    return {
        "facts": json.dumps(facts),
        "frames": np.empty((0, 0, 0, 0, 3), np.uint8) if row.frames is None else row.frames,
        "timestamps": np.empty((0, 0)) if row.timestamps is None else row.timestamps,
    }


def from_block(block: dict[str, Any]) -> Row:
    """The inverse of `to_block`."""
    facts = json.loads(block["facts"])
    for key, kind in (("receipt", ChunkReceipt), ("end", End)):
        facts[key] = None if facts[key] is None else kind(**facts[key])
    return Row(
        frames=block["frames"] if len(block["frames"]) else None,
        timestamps=block["timestamps"] if len(block["timestamps"]) else None,
        **facts,
    )
