"""The store's routes: what is in it, and of each video times, pictures and, where that was allowed, its file."""

import mimetypes
import threading
import time
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse, Response

from vococache.pipeline.ask import notes
from vococache.pipeline.live.parts import newest_part
from vococache.pipeline.originals import source_file
from vococache.pipeline.search.job import find
from vococache.pipeline.selection import conditions
from vococache.pipeline.serve.pictures import MAX_PICTURES, Pictures
from vococache.storage import VideoInfo
from vococache.storage.reading import READABLE
from vococache.workers.reason import ReasonStage

MOST = 500  # videos on a page
FRESH_SECONDS = 2.0  # that a listing is believed; or, of a large store, ten times what it took
# Of a part of a live source: its id, the moment of its first frame, what came before it, and how it was thinned.
LIVE_FIELDS = ("live", "started", "after", "gap", "thinned")
PICTURES_KEPT = "private, max-age=3600"


class Listing:
    """The store's videos, looked up again when they were not for a while."""

    def __init__(self, stage: ReasonStage) -> None:
        self._store = stage.store
        self._lock = threading.Lock()
        self._infos: list[VideoInfo] = []
        self._until = 0.0

    def infos(self) -> list[VideoInfo]:
        """All videos, by id."""
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                self._infos = self._store.list()
                now = time.monotonic()
                self._until = now + max(FRESH_SECONDS, 10 * (now - began))
            return self._infos


def row(info: VideoInfo) -> dict[str, Any]:
    """What clients are told of a video: not where its file lies."""
    about = info.metadata or {}
    return {
        "id": info.id, "status": info.status, "reason": info.reason, "segments": info.segments,
        "duration": info.duration, "sampling": info.sampling, "bytes": info.bytes, **info.findings,
        **{name: about[name] for name in LIVE_FIELDS if name in about},
    }  # fmt: skip


def routes(stage: ReasonStage, pictures: Pictures, *, sources: bool) -> APIRouter:
    """The routes over a stage's store. `sources`: whether files are handed out."""
    router = APIRouter(tags=["store"])
    listing = Listing(stage)

    @router.get("/videos")
    def videos(
        search: Annotated[str, Query(max_length=200)] = "",
        status: Annotated[str | None, Query(pattern="^(complete|growing|failed|partial)$")] = None,
        after: Annotated[str, Query(max_length=800)] = "",
        limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
    ) -> dict[str, Any]:
        """Videos by id, those that hold `search` and are `status`, from behind the id `after`; `next` goes on there."""
        infos = listing.infos()
        wanted = search.casefold()
        found = [
            info
            for info in infos
            if wanted in info.id.casefold() and (status is None or info.status == status) and info.id > after
        ]
        return {
            "videos": [row(info) for info in found[:limit]],
            "next": found[limit - 1].id if len(found) > limit else None,
            "left": max(0, len(found) - limit),
            "total": len(infos),
        }

    @router.get("/videos/{video}")
    def video(video: str) -> dict[str, Any]:
        """One video, with its segments' times in seconds (first and last frame) and what is to be known of it.

        Of a part of a live source also its `live` id and the moment of its first frame, `started`. A live source's id
        is that of its newest part.
        """
        part = newest_part(stage.store, video)
        info = stage.store.info(video) if part is None else part.info
        told = row(info) | {"times": [], "notes": [], "has_source": False, "has_pictures": False}
        if info.status in READABLE:
            times = stage.store.timestamps(info.id)
            at_hand = source_file(info) is not None
            told |= {
                "times": times[:, [0, -1]].tolist(), "notes": notes(stage, [video]),
                "has_source": sources and at_hand, "has_pictures": at_hand,
            }  # fmt: skip
        return told

    searching = CapacityLimiter(1)  # each takes all cores, beside the questions

    @router.get("/search")
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=1000)],
        video: Annotated[list[str] | None, Query(max_length=MOST)] = None,
        where: Annotated[list[str] | None, Query(max_length=16)] = None,
        top: Annotated[int, Query(ge=1, le=MOST)] = 10,
        read: bool = True,
    ) -> dict[str, Any]:
        """Windows (video, seconds, score) that show what `q` says, best first.

        Of these `video`s, or of those that have the metadata `where` (KEY=VALUE). Without `read`: by the index alone.
        """
        wanted = conditions(where or ())
        found = await run_sync(
            lambda: find(stage, q, videos=video, where=wanted, top=top, read=read), limiter=searching
        )
        return found.to_dict()

    # Of threads of their own: decoding that takes its time keeps no question waiting.
    few = CapacityLimiter(4)

    @router.get("/videos/{video}/thumbnails", response_class=Response)
    async def thumbnails(video: str, count: Annotated[int, Query(ge=1, le=MAX_PICTURES)] = 1) -> Response:
        """So many square pictures side by side as one JPEG, evenly spread over the video."""
        data = await run_sync(lambda: pictures.strip(stage.store.info(video), count), limiter=few)
        if data is None:
            raise HTTPException(404, f"the file of video {video!r} is not at hand, or shows no picture")
        return Response(data, media_type="image/jpeg", headers={"cache-control": PICTURES_KEPT})

    if sources:

        @router.get("/videos/{video}/source", response_class=FileResponse)
        def source(video: str) -> FileResponse:
            """The video's own file, whole or by byte ranges."""
            path = source_file(stage.store.info(video))
            if path is None:
                raise HTTPException(404, f"the file of video {video!r} is not at hand, or is another one by now")
            kind = mimetypes.guess_type(path.name)[0] or ""
            shown = kind if kind.startswith("video/") else "application/octet-stream"
            return FileResponse(path, media_type=shown, headers={"content-disposition": "inline"})

    return router
