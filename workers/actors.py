"""The stages as Ray Data actors. The only file of this folder that knows Ray.

Ray Data executes: actor pools, streaming, backpressure and retries are its own. What is ours is three facts:
a chunk is a block (or a whole video would be decoded before its first chunk is compressed), fractional CPUs (or
the pools starve each other on a small machine), and a fixed number of torch threads (or the bits would depend
on the machine).
"""

import gc
import json
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray._private import ray_constants
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from vococache import errors
from vococache.errors import InputError, StoreError, VoCoError, WorkersLostError
from vococache.storage import ChunkReceipt, Store, StoreHeader, open_store
from vococache.storage.format import TEMPORARY
from vococache.storage.local_objects import LocalObjects
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import End, Row, VideoTask

if TYPE_CHECKING:  # a decode actor has no use for torch, which this would load
    from vococache.workers.answering import AnswerStage, VideoAnswer, VideoQuestions
    from vococache.workers.compress import Compressor, CompressStage

# What a local Ray may keep in flight; decoders wait while it is full, so memory does not grow with a video.
OBJECT_STORE_BYTES = 256 << 20
CLUSTER_OBJECT_STORE_BYTES = 8 << 30
# Of a compressor on CPUs: the same everywhere, because a sum's last bits depend on how it is split.
COMPRESS_THREADS = 2

MIN_OPEN_FILES = 256

_STARTER = ThreadPoolExecutor(1, thread_name_prefix="ray-init")

_TOKEN = secrets.token_hex(32)  # lets this process alone into its local Ray; Ray remembers the first that it sees

_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pools:
    """How many actors each stage has (None: as many as the cluster grows to), each with part of a CPU and of a GPU."""

    decoders: int | None
    compressors: int | None
    cpus: float
    gpus: float


def start_ray(address: str | None) -> bool:
    """Connect to a cluster, or start a local Ray without dashboard. True if it is ours to shut down."""
    if ray.is_initialized():
        return False
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ})
    if address is not None:
        _check_reachable(address)
    elif not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN  # or Ray would write one to the home directory, where there may be none
    _check_open_files()
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        with _silent_stderr(), nullcontext() if address else _on_loopback():
            _init_ray(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises bare ones too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "AF_UNIX path length" in reason:
            reason += "; set RAY_TMPDIR to a folder of a short path, such as /tmp"
        if address is None:
            raise WorkersLostError(f"Ray does not start on this machine: {reason}") from None
        if _lacks_token(error):
            raise InputError(
                f"the Ray cluster at {address!r} expects its token, found none or another here: set RAY_AUTH_TOKEN to"
                f" it (RAY_AUTH_TOKEN_PATH for a file), see docs/cluster.md"
            ) from None
        raise InputError(f"no Ray cluster at {address!r}: {reason}") from None
    return True


def _lacks_token(error: BaseException | None) -> bool:
    """Did a cluster turn us away? Where Ray says so, deep within, depends on how far it came."""
    while error is not None:
        if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_open_files() -> None:
    """Refuse a limit on open files with which Ray's native part would end this process, without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
        raise WorkersLostError(
            f"Ray cannot start with {hard} open files: expected a limit (`ulimit -n`) of {MIN_OPEN_FILES}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, hard))


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try it for many minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: found out at once
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster at {address!r}: {error.strerror or error}") from None


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray started within listens on loopback alone; by default on every address, for nodes that a local Ray never has.

    Its own way to that is meant for other systems, and read when it is imported: hence the constant too.
    """
    was = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def _init_ray(**options: Any) -> None:
    """`ray.init`, undisturbed by Ctrl-C and SIGTERM, which come after it.

    Either would leave Ray half made, and Ray answers SIGTERM with a native trace and an abort. So it starts in a thread
    that stays (its processes end with the thread that made them), where it cannot set Python's handlers, and what its
    native part sets is put back at once.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        ray.init(**options)
        return
    received: list[int] = []
    started = _STARTER.submit(ray.init, **options)
    while True:
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: received.append(number))
        if wait([started], timeout=0.005).done:
            break
    for number in handlers:
        signal.signal(number, handlers[number])
    if received:
        stop_ray()
        signal.raise_signal(received[0])
    started.result()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native part announces its log level on file descriptor 2, whatever that level is."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (`os.dup2` wants a descriptor, not a path)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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


def stop_ray() -> None:
    """Stop the local Ray, or leave the cluster."""
    ray.shutdown()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # of which Ray leaves the native half undone
    if os.environ.get("RAY_AUTH_TOKEN") == _TOKEN:
        del os.environ["RAY_AUTH_TOKEN"]
        os.environ.pop("RAY_AUTH_MODE", None)  # Ray has set it


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


def check_store_visible(store: Store, store_url: str, local: bool) -> None:
    """Refuse a store that the actors of some node cannot see: their caches would be lost.

    A `local` Ray's actors share the disk with us, but not an object store's credentials, nor `memory://`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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


class _Board:
    """What each actor is at, since when: what the driver reads when nothing moves."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[str, str, float]] = {}

    def note(self, actor: str, stage: str, video: str | None) -> None:
        self._at.pop(actor, None)
        if video is not None:
            self._at[actor] = stage, video, time.monotonic()

    def busy(self) -> list[tuple[str, str, float]]:
        # An actor that died has left its entry; another one, or another thread, has a younger one for the same video.
        latest = {(stage, video): since for stage, video, since in self._at.values()}
        return [(*work, time.monotonic() - since) for work, since in latest.items()]


def make_board() -> Any:
    """Where the actors of a job say what they are at."""
    return ray.remote(num_cpus=0)(_Board).remote()


def busy(board: Any) -> list[tuple[str, str, float]]:
    """What the actors are at: stage, video, seconds, the longest first; nothing where Ray does not answer."""
    try:
        found: list[tuple[str, str, float]] = ray.get(board.busy.remote(), timeout=10)
    except ray.exceptions.RayError:
        return []
    return sorted(found, key=lambda entry: -entry[2])


def run_stages(
    tasks: Sequence[VideoTask], decode: DecodeStage, compress: "CompressStage", pools: Pools, board: Any
) -> Iterator[Row]:
    """Run both stages over `tasks`, streaming; rows come back without frames, in no particular order."""
    dataset = _quiet_dataset([asdict(task) for task in tasks])
    context = dataset.context
    if pools.decoders is None:  # on a cluster, whose object store is not ours to fill
        limits = context.execution_options.resource_limits
        context.execution_options.resource_limits = limits.copy(object_store_memory=CLUSTER_OBJECT_STORE_BYTES)
    decoders = None if pools.decoders is None else min(pools.decoders, len(tasks))
    decoded = dataset.flat_map(
        _DecodeActor, fn_constructor_args=(decode, board), compute=_pool(decoders), num_cpus=pools.cpus
    )
    compressed = decoded.map(
        _CompressActor,
        fn_constructor_args=(compress, board),
        compute=_pool(pools.compressors, threads=2),  # one chunk is written while the next is computed
        num_cpus=pools.cpus,
        num_gpus=pools.gpus or None,
    )
    yield from map(from_block, _blocks(compressed))


def run_answers(
    asked: "Sequence[VideoQuestions]", stage: "AnswerStage", pools: Pools
) -> "Iterator[tuple[str, list[VideoAnswer], float]]":
    """Replies to the questions of each video, with seconds, as they come; a compressor's resources an actor."""
    from vococache.workers.answering import VideoAnswer

    if not asked:
        return
    answered = _quiet_dataset([{"asked": json.dumps(asdict(part))} for part in asked]).map(
        _AnswerActor,
        fn_constructor_args=(stage,),
        compute=_pool(pools.compressors),
        num_cpus=pools.cpus,
        num_gpus=pools.gpus or None,
    )
    for block in _blocks(answered):
        facts = _facts(block)
        yield facts["video"], [VideoAnswer(**reply) for reply in facts["replies"]], facts["seconds"]


def describe_reader_remotely(stage: "AnswerStage", device: str | None) -> dict[str, str | int | None]:
    """What `stage` says of itself where it will run: the driver may not have the memory."""
    pools = choose_pools(device, local=False)
    task = ray.remote(num_cpus=pools.cpus, num_gpus=pools.gpus)(type(stage).describe)
    found: dict[str, str | int | None] = _get([task.remote(stage)])[0]
    return found


def _quiet_dataset(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A dataset whose every row is its own block, so that it goes on as soon as it is made; nothing is printed."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    context = dataset.context  # this dataset's own, so that a user's settings stay
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return dataset


def _blocks(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they are made. Raises `WorkersLostError` where Ray gives up."""
    try:
        yield from dataset.iter_rows()
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None) or error
        if not _is_loss(cause):
            raise  # a bug of ours: with all that is known about it
        reason = str(cause).strip().splitlines()[0]
        raise WorkersLostError(f"Ray gave up: {reason}; the same command resumes where this one stopped") from error


def _is_loss(error: Exception) -> bool:
    """Did Ray lose an actor or a block, or wait in vain? Otherwise our code failed in an actor."""
    ours = isinstance(error, ray.exceptions.UserCodeException) or getattr(error, "actor_init_failed", False)
    return isinstance(error, (ray.exceptions.RayError, ExecutionTimeoutError)) and not ours


def _pool(size: int | None, threads: int = 1) -> ActorPoolStrategy:
    """As many tasks on their way to an actor as its threads have at hand; with fewer, Ray does not grow a pool."""
    return ActorPoolStrategy(
        min_size=size or 1,
        max_size=size,
        max_tasks_in_flight_per_actor=2 * threads,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=threads > 1,
    )


class _Noting:
    """An actor that says on the board what it is at."""

    def __init__(self, board: Any, stage: str) -> None:
        self._board, self._stage, self._actor = board, stage, ray.get_runtime_context().get_actor_id()

    def note(self, video: str | None) -> None:
        """What it begins; None while it waits."""
        self._board.note.remote(f"{self._actor} {threading.get_ident()}", self._stage, video)


class _DecodeActor(_Noting):
    def __init__(self, stage: DecodeStage, board: Any) -> None:
        super().__init__(board, "decode")
        self.stage = stage
        self.broken = _set_up(stage)

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.broken is not None:
            yield error_block(self.broken)
            return
        self.note(task["video"])
        try:
            for row in self.stage.process(VideoTask(**task)):
                self.note(None)
                yield to_block(row)
                self.note(task["video"])
        except VoCoError as error:
            yield error_block(error)
        finally:
            self.note(None)


class _CompressActor(_Noting):
    def __init__(self, stage: "CompressStage", board: Any) -> None:
        import torch

        super().__init__(board, "compress")
        torch.set_num_threads(COMPRESS_THREADS)
        self.stage = stage
        self.broken = _set_up(stage)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        if self.broken is not None:
            return error_block(self.broken)
        try:
            row = from_block(block)
            self.note(row.video)
            return to_block(self.stage.process(row))
        except VoCoError as error:
            return error_block(error)
        finally:
            self.note(None)


class _AnswerActor:
    def __init__(self, stage: "AnswerStage") -> None:
        import torch

        torch.set_num_threads(COMPRESS_THREADS)
        self.stage = stage
        self.broken = _set_up(stage)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        from vococache.workers.answering import VideoQuestions

        if self.broken is not None:
            return {"facts": json.dumps(_raising(self.broken))}
        try:
            video, replies, seconds = self.stage.timed(VideoQuestions(**json.loads(block["asked"])))
        except VoCoError as error:
            return {"facts": json.dumps(_raising(error))}
        return {
            "facts": json.dumps({"video": video, "replies": [asdict(reply) for reply in replies], "seconds": seconds})
        }


def _set_up(stage: "DecodeStage | CompressStage | AnswerStage") -> VoCoError | None:
    """Make a stage ready; why it cannot be. An actor that raised would only say so in Ray's words."""
    try:
        stage.setup()
    except VoCoError as error:
        return error
    return None


def error_block(error: VoCoError) -> dict[str, Any]:
    """A block that ends the job: `from_block` raises its error, which names the node where it arose."""
    return _block(_raising(error), None, None)


def _raising(error: VoCoError) -> dict[str, Any]:
    """Facts that make `_facts` raise an error."""
    message = str(error)
    node = "" if " (on node " in message else f" (on node {socket.gethostname()})"
    return {"raise": [type(error).__name__, message + node]}


def _facts(block: dict[str, Any]) -> dict[str, Any]:
    """What a block says. Raises the error of one that carries one."""
    facts: dict[str, Any] = json.loads(block["facts"])
    if "raise" in facts:
        name, message = facts["raise"]
        raise getattr(errors, name)(message)
    return facts


def to_block(row: Row) -> dict[str, Any]:
    """A row as Ray Data carries it: arrays zero-copy, the rest as one JSON text."""
    facts: dict[str, Any] = {
        "video": row.video,
        "attempt": row.attempt,
        "index": row.index,
        "intent": row.intent,
        "receipt": None if row.receipt is None else asdict(row.receipt),
        "end": None if row.end is None else asdict(row.end),
        "error": row.error,
        "seconds": row.seconds,
    }
    return _block(facts, row.frames, row.timestamps)


def _block(facts: dict[str, Any], frames: np.ndarray | None, timestamps: np.ndarray | None) -> dict[str, Any]:
    return {
        "facts": json.dumps(facts),
        "frames": np.empty((0, 0, 0, 0, 3), np.uint8) if frames is None else frames,
        "timestamps": np.empty((0, 0)) if timestamps is None else timestamps,
    }


def from_block(block: dict[str, Any]) -> Row:
    """The inverse of `to_block`. Raises the error of an `error_block`."""
    facts = _facts(block)
    for key, kind in (("receipt", ChunkReceipt), ("end", End)):
        facts[key] = None if facts[key] is None else kind(**facts[key])
    return Row(
        frames=block["frames"] if len(block["frames"]) else None,
        timestamps=block["timestamps"] if len(block["timestamps"]) else None,
        **facts,
    )
