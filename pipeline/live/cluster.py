"""`voco watch --address`: sources are watched by actors on a Ray cluster, some by each, with a model of its own."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vococache.errors import InputError
from vococache.pipeline.ingest.job import absolute, open_made
from vococache.pipeline.live.sources import WatchSource
from vococache.pipeline.live.standing import Tell
from vococache.pipeline.live.watch import Stored, check_sources, open_watch, wait_for_end
from vococache.storage import open_store
from vococache.workers.cluster import nodes, pools, residents, runtime
from vococache.workers.compressor import Compressor


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Sources that share an actor, and how they are watched there: the arguments of `open_watch`."""

    sources: tuple[WatchSource, ...]
    store: str
    compressor: Compressor
    options: dict[str, Any]

    def run(self, tell: residents.Tell, stop: threading.Event) -> None:
        """Watch. Tells what `open_watch` calls back: ("say", source, line), ("tell", answer), ("stored", chunk)."""
        watch = open_watch(
            self.sources, self.store, self.compressor, stop=stop, **self.options,
            say=lambda source, line: tell(("say", source, line)), tell=lambda answer: tell(("tell", answer)),
            on_stored=lambda stored: tell(("stored", stored)),
        )  # fmt: skip
        watch.run()


def watch_on_cluster(
    sources: Sequence[WatchSource],
    store: str,
    compressor: Compressor,
    *,
    address: str,
    quantize: str | None = None,
    device: str | None = None,
    say: Callable[[str, str], None],
    tell: Tell,
    on_stored: Callable[[Stored], None] | None = None,
    **options: Any,
) -> None:
    """Watch sources on the Ray cluster at `address` until all are over, or Ctrl-C, as `Watch.run` has it.

    Ray begins the actors of a dead node again on another, where they take their sources over. `options`: `fps` and
    `latency` of `open_watch`, whose other arguments are the same. Raises `InputError`, `ModelError`, `StoreError`,
    `WorkersLostError`.
    """
    check_sources(sources)
    if any(source.source == "-" for source in sources):
        raise InputError("standard input (-) is this process's own: watch it without --address")
    place = absolute(store)
    if Path(compressor.model).is_dir():  # the actors have working directories of their own
        compressor = replace(compressor, model=absolute(compressor.model))
    ours = runtime.start_ray(address)
    try:
        opened = open_made(place, compressor, quantize)
        if opened is None:
            header = nodes.describe_compressor_remotely(compressor, device)
            opened = open_store(place, "a", header=replace(header, quantization=quantize))
        nodes.check_store_visible(opened, place, local=False)
        compressor = replace(compressor, dtype=opened.header.compute_dtype)
        sized = pools.choose_pools(device, local=False)
        count = min(len(sources), residents.places(sized))
        common = {**options, "device": device, "quantize": opened.header.quantization}
        groups = [
            Group(sources=tuple(sources[n::count]), store=place, compressor=compressor, options=common)
            for n in range(count)
        ]
        _Driver(groups, say, tell, on_stored).run(sized)
    finally:
        if ours:
            runtime.stop_ray()


class _Driver:
    """Hands on what the groups tell."""

    def __init__(
        self, groups: Sequence[Group], say: Callable[[str, str], None], tell: Tell,
        on_stored: Callable[[Stored], None] | None,
    ) -> None:  # fmt: skip
        self._groups, self._say, self._tell, self._on_stored = groups, say, tell, on_stored
        self._lives: dict[int, str] = {}
        self._stop, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def run(self, sized: pools.Pools) -> None:
        """Until all groups are over; as `Watch.run`."""
        threading.Thread(target=self._follow, args=(sized,), name="residents", daemon=True).start()
        interrupt = wait_for_end(self._ended, self._stop)
        for failure in (self._error, interrupt):
            if failure is not None:
                raise failure

    def _follow(self, sized: pools.Pools) -> None:
        try:
            residents.follow(self._groups, sized, hear=self._hear, silent=self._silent, stop=self._stop)
        except BaseException as error:  # told by `run`
            self._error = error
        finally:
            self._ended.set()

    def _hear(self, number: int, word: residents.Word) -> None:
        before = self._lives.get(number)
        if before != word.life:
            self._lives[number] = word.life
            for source in self._groups[number].sources:
                line = f"watching {source.name} on node {word.node}"
                self._say(source.id, line if before is None else f"its node or process died: now {line}")
        for kind, *what in word.told:
            if kind == "say":
                source, line = what
                self._say(source, f"{line} (on node {word.node})")
            elif kind == "tell":
                self._tell(*what)
            elif self._on_stored is not None:
                self._on_stored(*what)

    def _silent(self, number: int) -> None:
        line = f"no word from its node for {residents.SILENT_SECONDS:g} s: Ray begins it elsewhere once there is room"
        for source in self._groups[number].sources:
            self._say(source.id, line)
