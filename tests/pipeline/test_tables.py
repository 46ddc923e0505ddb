from vococache.pipeline.tables import aligned, markdown


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("video", "segments"), ("a long name", "3"), ("a line of text that widens no column",), ("b", "12", "more")]
    assert aligned(rows).splitlines() == [
        "video        segments",
        "a long name  3",
        "a line of text that widens no column",
        "b            12        more",
    ]
    assert aligned([]) == ""


def test_markdown_keeps_cells_apart() -> None:
    assert markdown([("a", "b"), ("x|y", "")]).splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y |  |"]
