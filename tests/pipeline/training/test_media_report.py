"""What is told of media that are missing or broken."""

from pathlib import Path

from vococache.pipeline.training.report import LeftOutRow, MediaReport, read_report, record, settle


def test_lines_of_a_report_are_short_and_whole(tmp_path: Path) -> None:
    """Longer ones might be torn where several processes append."""
    path = tmp_path / "report.jsonl"
    items = [
        LeftOutRow(index, text * 5000, text * 5000, "broken", text * 5000)
        for index, text in enumerate("a\n\0é🎈\ud800")
    ]
    path.write_bytes(b"".join(item.to_line() for item in items))
    assert all(len(item.to_line()) < 4096 for item in items)
    assert read_report(path).counts == {"broken": 6}


def test_a_settled_report_has_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    items = [LeftOutRow(3, name, "a.mp4", "broken", "torn") for name in ("one", "two")]  # of two files
    for _ in range(3):
        record(path, items)
    assert settle(path).counts == read_report(path).counts == {"broken": 2}
    assert len(path.read_bytes().splitlines()) == 2


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert read_report(tmp_path / "none.jsonl") == MediaReport({}, {})
    assert str(MediaReport({}, {})) == ""
