"""The stages as Ray Data actors.

Ray Data executes: actor pools, streaming, backpressure and retries are its own. What is ours is four facts:
videos come in batches, drawn as they are wanted (or the driver's costs and memory would grow with each), a long video's
chunk is a block (or all of it would be decoded before its first chunk is compressed), fractional CPUs (or
the pools starve each other on a small machine), and a fixed number of torch threads (or the bits would depend
on the machine).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import ray
from ray.data.exceptions import ExecutionTimeoutError

from vococache.errors import VoCoError, WorkersLostError
from vococache.workers.batches import row_groups
from vococache.workers.cluster.blocks import error_block, facts_of, from_block, raising, to_block
from vococache.workers.cluster.board import Noting
from vococache.workers.cluster.feed import Feeder, read_batches, tasks_of
from vococache.workers.cluster.pools import COMPRESS_THREADS, Pools, pool_of
from vococache.workers.decode import DecodeStage
from vococache.workers.rows import Row, VideoTask

if TYPE_CHECKING:  # a decode actor has no use for torch, which this would load
    from vococache.workers.answering import AnswerStage, VideoAnswer, VideoQuestions
    from vococache.workers.compress import CompressStage

CLUSTER_OBJECT_STORE_BYTES = 8 << 30
CLUSTER_DECODERS = 32  # that a cluster is expected to grow to; more only wait longer for the last batches


def run_stages(
    tasks: Iterable[VideoTask],
    decode: DecodeStage,
    compress: "CompressStage",
    pools: Pools,
    board: Any,
    max_frames: int = 1,
) -> Iterator[Row]:
    """Run both stages over `tasks`, which are drawn as they are wanted, from a thread of its own.

    Rows come back without frames, in no particular order. `max_frames`: of the chunks that cross in one block.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, pools.decoders or 1))  # no more actors than videos
    if not first:
        return
    with Feeder(chain(first, tasks), pools.decoders or CLUSTER_DECODERS) as feeder:
        yield from _run_stages(feeder.actor, decode, compress, pools, len(first), board, max_frames)
        if feeder.error is not None:
            raise feeder.error


def _run_stages(
    feed: Any,
    decode: DecodeStage,
    compress: "CompressStage",
    pools: Pools,
    decoders: int,
    board: Any,
    max_frames: int,
) -> Iterator[Row]:
    dataset = _quiet_dataset([{"all": 0}]).flat_map(read_batches, fn_kwargs={"feed": feed}, num_cpus=0)
    context = dataset.context
    if pools.decoders is None:  # on a cluster, whose object store is not ours to fill
        limits = context.execution_options.resource_limits
        context.execution_options.resource_limits = limits.copy(object_store_memory=CLUSTER_OBJECT_STORE_BYTES)
    decoded = dataset.flat_map(
        _DecodeActor,
        fn_constructor_args=(decode, board, max_frames),
        compute=pool_of(None if pools.decoders is None else decoders),
        num_cpus=pools.cpus,
    )
    compressed = decoded.map(
        _CompressActor,
        fn_constructor_args=(compress, board),
        compute=pool_of(pools.compressors, threads=2),  # one chunk is written while the next is computed
        num_cpus=pools.cpus,
        num_gpus=pools.gpus or None,
    )
    for block in _blocks(compressed):
        yield from from_block(block)


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
        compute=pool_of(pools.compressors),
        num_cpus=pools.cpus,
        num_gpus=pools.gpus or None,
    )
    for block in _blocks(answered):
        facts = facts_of(block)
        yield facts["video"], [VideoAnswer(**reply) for reply in facts["replies"]], facts["seconds"]


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


class _DecodeActor(Noting):
    def __init__(self, stage: DecodeStage, board: Any, max_frames: int) -> None:
        super().__init__(board, "decode")
        self.max_frames = max_frames
        self.stage = stage
        self.broken = _set_up(stage)

    def __call__(self, batch: dict[str, str]) -> Iterator[dict[str, Any]]:
        if self.broken is not None:
            yield error_block(self.broken)
            return
        try:
            for rows in row_groups(self._rows(batch), self.max_frames):
                yield to_block(rows)
        except VoCoError as error:
            yield error_block(error)

    def _rows(self, batch: dict[str, str]) -> Iterator[Row]:
        try:
            for task in tasks_of(batch):
                self.note(task.video)
                for row in self.stage.process(task):
                    self.note(None)
                    yield row
                    self.note(task.video)
        finally:
            self.note(None)


class _CompressActor(Noting):
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
            rows = []
            for row in from_block(block):
                self.note(row.video)
                rows.append(self.stage.process(row))
            return to_block(rows)
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
            return {"facts": json.dumps(raising(self.broken))}
        try:
            video, replies, seconds = self.stage.timed(VideoQuestions(**json.loads(block["asked"])))
        except VoCoError as error:
            return {"facts": json.dumps(raising(error))}
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
