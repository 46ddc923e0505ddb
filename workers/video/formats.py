"""Which kinds of files are read as videos, and what others are, by their first bytes.

Only formats that hold their media themselves: a demuxer of scripts (concat, HLS, DASH, SDP, image sequences) reads what
the script names, whatever the file is called.
"""

import re
from collections.abc import Iterator
from pathlib import Path

# FFmpeg's names. Those of sound stand here so that such a file is said to have no video stream.
DEMUXERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "kux", "asf", "asf_o", "ogg", "mxf",
    "mxg", "gxf", "lxf", "dv", "gif", "apng", "h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "mjpeg",
    "mjpeg_2000", "ivf", "obu", "av1", "avs2", "avs3", "cavsvideo", "dirac", "dnxhd", "apv", "vc1", "vc1test",
    "nut", "rm", "ivr", "wtv", "nsv", "nuv", "pva", "pmp", "psp", "mtv", "ty", "dhav", "hxvs", "lvf",
    "yuv4mpegpipe", "amv", "swf", "roq", "smk", "bink", "flic", "film_cpk", "aac", "ac3", "aiff", "caf", "flac",
    "mp3", "w64", "wav",
)  # fmt: skip
HEAD_BYTES = 4096
ZEROS_BYTES = 1 << 20  # read at once
FRAGMENT_BYTES = 1 << 20  # of the head of a fragment
MAX_SAMPLES = 16  # in a byte of an MP4: old sound has six

_STARTS = (
    (b"version https://git-lfs.", "a Git LFS pointer instead of the file: `git lfs pull` fetches it"),
    (b"/annex/objects/", "a git-annex pointer instead of the file: `git annex get` fetches it"),
    (b"ffconcat version", "a script that names other files (ffconcat): name those instead"),
    (b"#EXTM3U", "a playlist (HLS): name the videos in it instead"),
    (b"[playlist]", "a playlist: name the videos in it instead"),
    (b"v=0", "a description of a stream (SDP)"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it"),
    (b"%PDF-", "a PDF document"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"BM", "a picture (BMP)"),
    (b"\x1f\x43\xb6\x75", "a fragment of WebM or Matroska without its head"),
)
_TEXTS = (
    (rb"<(!doctype html|html)", "an HTML page, such as servers send instead of a file"),
    (rb"<\?xml.{0,500}?<MPD|<MPD", "a playlist (DASH): name the videos in it instead"),
    (rb"<(\?xml|Error|svg)", "an XML document, such as servers send instead of a file"),
    (rb"[{\[]\s*([\"{\[\]}]|-?\d|true|false|null)", "JSON text, such as servers send instead of a file"),
)


def what_it_is(path: str) -> str | None:
    """What a file is that could not be opened as a video, in words; None where its first bytes do not tell."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what in _STARTS:
        if (text if start[:1].isascii() and start.isascii() else head).startswith(start):
            return what
    for pattern, what in _TEXTS:
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a picture (WebP)"
    if not head.strip(b"\0"):
        return "nothing but zeros at its start"
    return _what_mp4(path) if head[4:8].isalpha() else None


def boxes(path: str, at: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int]]:
    """The boxes of an MP4 file, or of a part of it: of which kind each is, and where it ends."""
    with Path(path).open("rb") as file:
        end = Path(path).stat().st_size if end is None else end
        while at < end:
            file.seek(at)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            yield kind, at + size
            if size < 8:
                break
            at += size


def inside(path: str, kinds: list[bytes], at: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Where the contents of boxes start and end that lie in each other, the outermost first."""
    for found, after in boxes(path, at, end):
        if found == kinds[0] and after <= (after if end is None else end):
            yield from inside(path, kinds[1:], at + 8, after) if kinds[1:] else [(at + 8, after)]
        at = after


def content(path: str, box: tuple[int, int], most: int) -> bytes:
    """The first bytes of a box's content."""
    with Path(path).open("rb") as file:
        file.seek(box[0])
        return file.read(max(0, min(most, box[1] - box[0])))


def most_samples(path: str) -> int:
    """The largest number of samples that a table of an MP4 file claims in a few bytes, without an entry for each."""
    most = at = 0
    with Path(path).open("rb") as file:
        for kind, after in boxes(path):
            if kind == b"moov":
                for table in inside(path, [b"trak", b"mdia", b"minf", b"stbl", b"stsz"], at + 8, after):
                    head = content(path, table, 12)
                    most = max(most, int.from_bytes(head[8:12], "big") if any(head[4:8]) else 0)
            elif kind == b"moof":
                file.seek(at)
                for run in file.read(min(after - at, FRAGMENT_BYTES)).split(b"trun")[1:]:
                    if not int.from_bytes(run[1:4], "big") & 0xF00:
                        most = max(most, int.from_bytes(run[4:8], "big"))
            at = after
    return most


def claimed_size(head: bytes) -> int:
    """How long a Matroska or RIFF (AVI) file says that it is, in bytes; 0 where it does not say."""
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if size not in (0, 0xFFFFFFFF) else 0
    at = head.find(b"\x18\x53\x80\x67")  # the Segment element
    if head[:4] != b"\x1a\x45\xdf\xa3" or not 0 < at < len(head) - 12:
        return 0
    width = 9 - head[at + 4].bit_length()
    bits = 7 * width
    size = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << bits) - 1)
    return at + 4 + width + size if size != (1 << bits) - 1 else 0  # all ones: unknown


def length_without_zeros(path: str) -> int | None:
    """How long a file is without the zeros at its end, in bytes; None where there are none, or nothing else."""
    with Path(path).open("rb") as file:
        end = Path(path).stat().st_size
        size = end
        while end > 0:
            start = max(0, end - ZEROS_BYTES)
            file.seek(start)
            if rest := file.read(end - start).rstrip(b"\0"):
                return start + len(rest) if start + len(rest) < size else None
            end = start
    return None


def is_theora_head(packet: bytes) -> bool:
    """Does a packet set up the decoder of Theora? In the middle of a file another recording begins with them."""
    return packet[:1] in (b"\x80", b"\x81", b"\x82") and packet[1:7] == b"theora"


def is_vp8_head(packet: bytes) -> bool:
    """Does a packet only say that a stream of VP8 in Ogg follows?"""
    return packet[:5] == b"OVP80"


def _what_mp4(path: str) -> str | None:
    kinds = set()
    for kind, end in boxes(path):
        if kind == b"moov":
            return "an MP4 that is cut off within its index (moov)" if end > Path(path).stat().st_size else None
        kinds.add(kind)
    if not kinds & {b"ftyp", b"styp", b"moof", b"mdat", b"sidx"}:
        return None
    if b"moof" in kinds or b"styp" in kinds:
        return "a fragment of MP4 without its head (moov), which lies in a file of its own: join them"
    return "an MP4 whose index (moov) is missing: its recording or its copy did not come to its end"
