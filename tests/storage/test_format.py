"""Names, lengths, documents; the store that an earlier version wrote; other versions and other programs' files."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.samples import HEADER, KV, add, intent, kv, times, write

from vococache.errors import InputError, StoreError
from vococache.storage import ChunkReceipt, Intent, Store, StoreHeader, VideoInfo, maintenance, open_store, safe_key
from vococache.storage.documents import GROUP, seal, unseal
from vococache.storage.format import even_chunk_segments, is_safe_key, max_chunk_segments
from vococache.storage.objects import redact

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("version", sorted(path.name for path in DATA.iterdir()))
def test_stores_of_earlier_versions_are_read(version: str) -> None:
    store = open_store(str(DATA / version))
    kind, error = {"v1": (None, 0), "v2": ("int4", 4), "v3": (None, 0)}[version]
    index = HEADER.index if version == "v3" else None
    assert store.header == dataclasses.replace(HEADER, quantization=kind, index=index)
    assert list(maintenance.verify(store)) == []
    assert [(info.id, info.status, info.segments) for info in store.list()] == [
        ("broken", "failed", 0),
        ("clip", "complete", 7),
        ("second clip", "complete", 2),
    ]
    np.testing.assert_allclose(store.read("clip"), kv(7), rtol=0, atol=error)
    np.testing.assert_array_equal(store.timestamps("clip"), times(7))
    np.testing.assert_allclose(store.read("second clip", 1), kv(2, seed=5)[1:], rtol=0, atol=error)
    assert store.info("clip").mtime_ns == intent().mtime_ns
    array = zarr.open_array(DATA / version / "videos" / "clip" / (KV if version == "v3" else "kv"), mode="r")
    np.testing.assert_array_equal(array[:], store.read("clip"))


def test_the_same_videos_give_the_same_bytes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), "a", header=HEADER)
    add(store, "clip", segments=7)
    for entry in store.objects.walk("videos/clip"):
        assert Path(store.url, entry.key).read_bytes() == (DATA / "v3" / entry.key).read_bytes(), entry.key


@given(st.text(max_size=300))
def test_every_text_makes_a_safe_key(text: str) -> None:
    key = safe_key(text)
    assert is_safe_key(key)
    assert Path("root", key).resolve().parent == Path("root").resolve()
    assert len(key.encode()) <= 200


@given(st.text(alphabet="aé.%~_/ \\-Z0", max_size=8), st.text(alphabet="aé.%~_/ \\-Z0", max_size=8))
def test_distinct_texts_make_distinct_keys(first: str, second: str) -> None:
    assert (safe_key(first) == safe_key(second)) == (first == second)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("clip_01", "clip_01"),
        ("-my clip.v2", "-my clip.v2"),
        ("日本 clip", "日本 clip"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        ("a..b", "a.%2Eb"),
        (".hidden", "%2Ehidden"),
        (" x ", "%20x%20"),
        ("__x", "%5F_x"),
        ("zarr.json", "zarr%2Ejson"),
        ("100%", "100%25"),
        ("a*?[b]", "a%2A%3F%5Bb%5D"),
        ("\udc80", "%ED%B2%80"),
        ("", "%"),
    ],
)
def test_safe_keys(text: str, key: str) -> None:
    assert safe_key(text) == key
    assert is_safe_key(key)


def test_long_names_stay_distinct() -> None:
    keys = {safe_key("x" * 300 + end) for end in ("a", "b", "")}
    assert len(keys) == 3
    assert all(is_safe_key(key) for key in keys)


def test_segments_are_spread_evenly() -> None:
    assert even_chunk_segments(70, 64) == 35
    assert even_chunk_segments(64, 64) == 64
    assert even_chunk_segments(65, 64) == 33
    assert even_chunk_segments(1, 64) == 1
    assert even_chunk_segments(0, 64) == 1
    for segments in range(1, 300):
        length = even_chunk_segments(segments, 64)
        chunks = -(-segments // length)
        assert length <= 64
        assert chunks == -(-segments // 64)
        assert chunks * length - segments < chunks  # less than a segment of padding for each chunk


def test_chunks_stay_small() -> None:
    assert max_chunk_segments(1 << 20, 3 * 336 * 336) == 16  # Vicuna-7B, K = 2
    assert max_chunk_segments(1 << 30, 3 * 336 * 336) == 1
    assert max_chunk_segments(64, 3 * 336 * 336) == 99  # the frames decide
    assert max_chunk_segments(64, 192) == 256


def test_records_survive_json() -> None:
    receipt = ChunkReceipt(index=1, length=3, crc32c=4, vectors_crc32c=5)
    info = VideoInfo.from_dict(
        dict.fromkeys((field.name for field in dataclasses.fields(VideoInfo)), 0) | {"bytes": 9, "padding_bytes": 2}
    )
    assert info.payload_bytes == 7
    for record in (HEADER, intent(), receipt, info):
        assert type(record).from_dict(record.to_dict()) == record
    assert Intent.from_dict(intent().to_dict() | {"of a later version": 1}) == intent()
    assert intent(content="a").token != intent(content="b").token


def test_a_seal_is_not_fooled_by_its_own_text() -> None:
    fields = {"source": '"crc32c":"00000000"', "crc32c": "00000000", "name": "ü\udc80"}
    data = seal(GROUP, fields)
    assert unseal(GROUP, data) == fields
    assert unseal(GROUP, data.replace(b'"00000000"', b'"00000001"')) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (seal(GROUP, {"format_version": 4}), "format version 4, this vococache reads up to 3: update"),
        (b'{"zarr_format":3,"node_type":"group","attributes":{}}', "of another program: expected a VoCoCache store"),
        (b"\x00", "of another program"),
        (b"[]", "of another program"),
        (seal(GROUP, {"format_version": 1})[:-2], "its bytes changed"),
    ],
)
def test_what_is_not_a_store_of_ours(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "zarr.json").write_bytes(content)
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match=message):
            open_store(str(tmp_path), mode, header=HEADER)  # type: ignore[arg-type]


def test_a_store_is_not_made_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"not empty \(it holds 'thesis.tex'\)"):
        open_store(str(tmp_path), "a", header=HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_lost_root_document_is_not_made_anew_over_videos(local_store: Store) -> None:
    add(local_store, "clip")
    Path(local_store.url, "zarr.json").unlink()
    with pytest.raises(StoreError, match="holds 'clip'"):
        open_store(local_store.url, "a", header=HEADER)


@pytest.mark.skipif(sys.platform == "win32", reason="Unix permissions")
def test_a_read_only_store() -> None:
    script = (
        "import os, sys\n"
        "from vococache.storage import open_store\n"
        "import vococache.storage.maintenance\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "assert len(open_store(sys.argv[1]).list()) == 1\n"
        "try: open_store(sys.argv[1], 'a')\n"
        "except OSError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        root = Path(folder, "store")
        add(open_store(str(root), "a", header=HEADER), "clip")
        root.parent.chmod(0o755)
        root.chmod(0o555)
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        done = subprocess.run(
            [sys.executable, "-c", script, str(root)], env=environment, capture_output=True, text=True
        )
        root.chmod(0o755)
    assert "is read-only: expected a folder" in done.stdout, done.stderr


def test_unusable_urls_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file" / "store"), "nosuch://user:secret@host/x"):
        with pytest.raises(StoreError) as caught:
            open_store(url, "a", header=HEADER)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_credentials_do_not_appear() -> None:
    assert redact("ftp://me:pw@host/a failed") == "ftp://host/a failed"
    assert redact("GET https://host/a?X-Amz-Signature=abc failed") == "GET https://host/a failed"


def test_file_urls_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("store", "a", header=HEADER)
    assert store.url == str(tmp_path / "store")
    assert open_store(f"file://{tmp_path}/store").header == HEADER


def one_bad(value: float) -> npt.NDArray[np.float16]:
    data = kv(3)
    data.flat[5] = value
    return data


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (kv(3).astype(np.float32), "expected float16"),
        (kv(3)[:, :1], "expected float16 of shape"),
        (kv(4), "with fewer segments"),
        (kv(3)[:0], "with fewer segments"),
        (one_bad(np.inf), "not finite"),
        (one_bad(-np.inf), "not finite"),
        (one_bad(np.nan), "not finite"),
        (one_bad(-np.nan), "not finite"),
    ],
)
def test_chunks_are_refused_before_they_are_written(
    local_store: Store, bad: npt.NDArray[np.floating], message: str
) -> None:
    local_store.begin("clip", intent())
    with pytest.raises(InputError, match=message):
        local_store.write_chunk("clip", intent().token, 0, bad)
    assert local_store.begin("clip", intent()) == {}


def test_the_largest_numbers_are_finite(local_store: Store) -> None:
    limits = np.finfo(np.float16)
    data = kv(3)
    data.flat[:6] = [limits.max, limits.min, -0.0, limits.tiny, limits.smallest_subnormal, -limits.smallest_subnormal]
    receipts = write(local_store, "clip", intent(), data)
    local_store.complete("clip", intent().token, receipts, times(3), 3.0)
    assert local_store.read("clip").tobytes() == data.tobytes()


def test_completion_is_refused_with_holes(local_store: Store) -> None:
    receipts = write(local_store, "clip", intent(), kv(7))
    token = intent().token
    with pytest.raises(InputError, match="expected each of 0 to n - 1 once"):
        local_store.complete("clip", token, receipts[1:], times(4), 4.0)
    with pytest.raises(InputError, match="only the last of which may have fewer"):
        local_store.complete("clip", token, receipts, times(6), 6.0)
    with pytest.raises(InputError, match="timestamps: expected"):
        local_store.complete("clip", token, receipts, times(7)[:, :1], 7.0)
    with pytest.raises(InputError, match="duration"):
        local_store.complete("clip", token, receipts, times(7), float("nan"))
    assert local_store.info("clip").status == "partial"


def test_float32_stores(tmp_path: Path) -> None:
    header: StoreHeader = dataclasses.replace(HEADER, dtype="float32")
    store = open_store(str(tmp_path / "store"), "a", header=header)
    data = kv(7, header=header) / 3
    receipts = write(store, "clip", intent(), data)
    store.complete("clip", intent().token, receipts, times(7), 7.0)
    np.testing.assert_array_equal(store.read("clip", 2, 5), data[2:5])
    bad = data[:3].copy()
    bad.flat[0] = -np.inf
    store.begin("other", intent())
    with pytest.raises(InputError, match="not finite in float32"):
        store.write_chunk("other", intent().token, 0, bad)


def test_importing_is_cheap() -> None:
    script = "import sys, vococache.storage, vococache.storage.maintenance; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    loaded = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert not {"zarr", "fsspec", "s3fs", "torch", "ray", "click"} & set(loaded.stdout.split())
