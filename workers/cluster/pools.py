"""How many actors each stage has, and what each of them takes of a machine."""

from dataclasses import dataclass

import ray
from ray.data import ActorPoolStrategy

# Of a compressor on CPUs: the same everywhere, because a sum's last bits depend on how it is split.
COMPRESS_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pools:
    """How many actors each stage has (None: as many as the cluster grows to), each with part of a CPU and of a GPU."""

    decoders: int | None
    compressors: int | None
    cpus: float
    gpus: float


def choose_pools(device: str | None, local: bool) -> Pools:
    """Pools for the Ray that is running, which is `local` to this job or a cluster that may grow.

    CPUs are fractional so that the two stages never starve each other; an actor's real use is bounded by its
    threads. Without GPUs so much is left over that the actors of a node that dies find room on the others: were
    the CPUs full of compressors that wait for the dead node's chunks, no decoder could start to make them again.
    With GPUs a cluster is expected to replace its nodes, and to grow: what actors ask for is what brings new ones.
    """
    resources = ray.cluster_resources()
    cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    on_gpu = device.startswith("cuda") if device else gpus > 0
    if local or not on_gpu:
        compressors = max(1, gpus if on_gpu else cpus // COMPRESS_THREADS)
        return Pools(decoders=cpus, compressors=compressors, cpus=0.25, gpus=float(on_gpu))
    return Pools(decoders=None, compressors=None, cpus=0.5, gpus=float(on_gpu))


def pool_of(size: int | None, threads: int = 1) -> ActorPoolStrategy:
    """As many tasks on their way to an actor as its threads have at hand; with fewer, Ray does not grow a pool."""
    return ActorPoolStrategy(
        min_size=size or 1,
        max_size=size,
        max_tasks_in_flight_per_actor=2 * threads,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=threads > 1,
    )
