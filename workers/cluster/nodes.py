"""What is found out on the nodes before a job: what a model makes there, and whether they see the store."""

import gc
import socket
import uuid
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vococache.errors import InputError, StoreError, VoCoError
from vococache.storage import Store, StoreHeader, open_store
from vococache.storage.format import TEMPORARY
from vococache.storage.local_objects import LocalObjects
from vococache.workers.cluster.pools import choose_pools

if TYPE_CHECKING:
    from vococache.workers.answering import AnswerStage
    from vococache.workers.compressor import Compressor


def describe_compressor(compressor: "Compressor", device: str | None) -> StoreHeader:
    """The header that `compressor` gives a store."""
    import torch

    from vococache.workers.compress import store_header

    header = store_header(compressor.load(device))
    gc.collect()  # the model: its layers refer to themselves
    torch.cuda.empty_cache()  # leave its memory to the actors
    return header


def describe_compressor_remotely(compressor: "Compressor", device: str | None) -> StoreHeader:
    """The same, found out where the compress actors will run: the driver may have no GPU, nor the memory."""
    pools = choose_pools(device, local=False)
    task = ray.remote(num_cpus=pools.cpus, num_gpus=pools.gpus)(describe_compressor)
    header: StoreHeader = _get([task.remote(compressor, device)])[0]
    return header


def describe_reader_remotely(stage: "AnswerStage", device: str | None) -> dict[str, str | int | None]:
    """What `stage` says of itself where it will run: the driver may not have the memory."""
    pools = choose_pools(device, local=False)
    task = ray.remote(num_cpus=pools.cpus, num_gpus=pools.gpus)(type(stage).describe)
    found: dict[str, str | int | None] = _get([task.remote(stage)])[0]
    return found


def check_store_visible(store: Store, store_url: str, local: bool) -> None:
    """Refuse a store that the actors of some node cannot see: their caches would be lost.

    A `local` Ray's actors share the disk with us, but not an object store's credentials, nor `memory://`.
    """

    if local and isinstance(store.objects, LocalObjects):
        return
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    # Another store may lie at the same path over there, even an equal one: only this object tells.
    probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    store.objects.put(probe, b"")
    try:
        checks = [
            ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))(_sees)
            for node in nodes
        ]
        found = _get([check.remote(store_url, probe) for check in checks])
    finally:
        store.objects.delete([probe])
    if blind := {node: reason for node, reason in sorted(found) if reason}:
        raise InputError(
            f"store {store.url} cannot be used on node {', '.join(blind)} ({next(iter(blind.values()))}): expected an"
            f" object store (s3://...) or a folder that all nodes share"
        )


def _sees(store_url: str, probe: str) -> tuple[str, str]:
    """This node's name, and why its actors cannot use the store; empty if they can."""
    try:
        seen = open_store(store_url, "a").objects.get(probe) is not None
    except StoreError as error:
        return socket.gethostname(), str(error).split(": ")[0]
    return socket.gethostname(), "" if seen else "another store is there"


def _get(references: list[Any]) -> list[Any]:
    """What tasks return; an error that one raised on purpose as it was raised, without Ray's account of it."""
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, VoCoError) else error) from None
