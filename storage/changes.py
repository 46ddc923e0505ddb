"""How a video's document changes: replaced only by whoever knows what it says now."""

from collections.abc import Callable, Iterable

from vococache.errors import CorruptionError, StoreError, StoreMismatchError
from vococache.storage import catalog, checks, documents
from vococache.storage.documents import Fields
from vococache.storage.format import DOCUMENT, FORMAT_VERSION, Intent, VideoInfo, generation_of, placed
from vococache.storage.generations import GenerationStore
from vococache.storage.reading import READABLE

Change = Callable[[Fields | None], tuple[Fields, Fields] | None]


class DocumentStore(GenerationStore):
    """The half of a `Store` that changes what documents say of videos without making their caches."""

    def fail(self, video: str, reason: str, *, source: str = "", size: int = 0, mtime_ns: int = 0) -> VideoInfo:
        """Record that a video cannot be had, and why; its chunks are dropped."""
        fields = {"status": "failed", "reason": reason, "source": source, "size": size, "mtime_ns": mtime_ns}
        return self.discard(video, fields)

    def record_source(self, video: str, source: str, size: int, mtime_ns: int) -> None:
        """Record where a video's file lies by now, and its size and time. Its content must be the same.

        Nothing happens where the video is gone. Raises `CorruptionError`.
        """

        def change(summary: Fields) -> None:
            summary.get("intent", summary).update(source=source, size=size, mtime_ns=mtime_ns)

        self._amend(video, change)

    def record_metadata(self, video: str, metadata: Fields) -> None:
        """Record what a manifest says of a readable video by now. Raises `InputError`, `CorruptionError`."""
        checks.check_metadata(metadata)

        def change(summary: Fields) -> None:
            if summary["status"] in READABLE:
                summary.pop("metadata", None)
                summary.update({"metadata": metadata} if metadata else {})

        self._amend(video, change)

    def discard(self, video: str, fields: Fields | None = None) -> VideoInfo:
        """Drop all objects of a video but its document, which from then on says `fields` (by default: none of it)."""
        said: Fields = fields or {"status": "partial", "reason": "discarded"}
        _, info = self._change(video, lambda _: (said, {}))
        keys = [entry.key for entry in self.objects.walk(self._key(video))]
        # A temporary file may belong to a writer that still lives; it will find its intent gone.
        self.objects.delete(key for key in keys if key != self._key(video, DOCUMENT) and "/.tmp-" not in key)
        return info

    def forget_begun(self, video: str) -> None:
        """Give up what is being made of a readable video. Raises `CorruptionError`."""
        self._amend(video, lambda summary: summary.pop("begun", None))

    def abandon(self, video: str, token: str) -> bool:
        """Remove a video that was begun with `token`; False, and nothing done, where it can be read or is another's."""
        key = self._key(video, DOCUMENT)
        fields = self._sound(data := self.objects.get(key), video)
        if fields is None or fields["status"] in READABLE or wanted_token(fields) != token:
            return False
        catalog.mark(self.objects, video)
        if not self.objects.replace(key, data, None):
            return False
        self.drop(video, generation_of(token))
        return True

    def remove_document(self, video: str) -> None:
        """Delete the document of a video whose objects were discarded, unless somebody began it anew."""
        key = self._key(video, DOCUMENT)
        data = self.objects.get(key)
        fields = self._sound(data, video)
        if fields is None or (fields["status"] == "partial" and "intent" not in fields):
            catalog.mark(self.objects, video)
            self.objects.replace(key, data, None)

    def _withdraw(self, video: str, token: str, keys: Iterable[str], index: int = 0) -> bool:
        """Delete what was written for an intent that is no longer the video's, or behind its end; False where it is."""
        fields = self._current(video)
        if (
            fields is not None
            and token in (wanted_token(fields), fields.get("token"))
            and not is_behind(fields, token, index)
        ):
            return False
        self.objects.delete(self._key(video, placed(generation_of(token), key)) for key in keys)
        return True

    def _change(self, video: str, change: Change, *seen: bytes | None) -> tuple[Fields | None, VideoInfo]:
        """Replace a video's document by what `change` makes of it, as nobody else has changed it since.

        What it said, None where it was none that is sound, and its row now; `change` returns None to leave it. `seen`:
        the document, where somebody has just read it.
        """
        key, known = self._key(video, DOCUMENT), list(seen)
        while True:
            try:
                data = known.pop() if known else self.objects.get(key)
            except CorruptionError:  # a link or the like
                self.objects.delete([key])
                continue
            fields = self._sound(data, video)
            new = change(fields)
            if new is None:
                assert fields is not None, "what is not there cannot be left as it is"
                return fields, documents.video_info(video, fields, len(data or b""))
            catalog.mark(self.objects, video, data)
            document = documents.seal_video(self.identity, video, *new)
            if self.objects.replace(key, data, document):
                return fields, documents.video_info(video, new[0], len(document))

    def _amend(self, video: str, change: Callable[[Fields], object]) -> None:
        """Change the summary of a video's document. Raises `CorruptionError`."""
        key = self._key(video, DOCUMENT)
        while (data := self.objects.get(key)) is not None and self.parse(video, data):
            catalog.mark(self.objects, video, data)
            if self.objects.replace(key, data, documents.changed(data, change)):
                return

    def _expect(self, video: str, fields: Fields | None, token: str, index: int = 0) -> None:
        """Raises `StoreMismatchError` where a video's intent is no longer `token`, or it ended before chunk `index`."""
        if fields is None or wanted_token(fields) != token:
            raise StoreMismatchError(
                f"video {video!r} in {self.url} was begun again with another source or other settings: expected intent"
                f" {token[:12]}; run the ingest again"
            )
        if is_behind(fields, token, index):
            raise StoreMismatchError(f"video {video!r} in {self.url} has ended: nothing is appended to it any more")

    def _expected_intent(self, video: str, token: str, index: int = 0) -> Intent:
        fields = self._current(video)
        self._expect(video, fields, token, index)
        assert fields is not None
        return intent_of(fields, token)

    def _check_version(self) -> None:
        if self.version < FORMAT_VERSION:
            raise StoreError(
                f"store {self.url} has format version {self.version}, in which nothing is written any more:"
                f" `voco upgrade {self.url}` brings it to {FORMAT_VERSION}"
            )


def wanted_token(fields: Fields) -> str | None:
    """The token of the intent that a video's chunks are taken of: of what is being made, else of what is there."""
    if (begun := documents.begun_of(fields)) is not None:
        return begun[0]
    return fields["token"] if fields["status"] in READABLE else None


def takes(fields: Fields, token: str, index: int) -> bool:
    """Are chunks of that token made into the video, and is this one not behind its end?"""
    return wanted_token(fields) == token and not is_behind(fields, token, index)


def is_behind(fields: Fields, token: str, index: int) -> bool:
    """Is a chunk of the intent that is read behind its end, which is known?"""
    is_ended = fields["status"] == "complete" or "ended" in fields
    return is_ended and is_read(fields, token) and index >= len(documents.stamps_of(fields))


def is_read(fields: Fields, token: str) -> bool:
    """Is a video of that token read, and not made anew?"""
    return fields["status"] in READABLE and fields["token"] == token and "begun" not in fields


def intent_of(fields: Fields, token: str) -> Intent:
    """The intent of `token`: of what is being made, else of what is there."""
    begun = documents.begun_of(fields)
    return begun[1] if begun is not None and begun[0] == token else Intent.from_dict(fields["intent"])
