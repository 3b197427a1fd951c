from __future__ import annotations

import pytest

from benchmarks.report import put


def test_only_the_places_of_the_page_are_written() -> None:
    page = "words\n<!-- a -->\nold\n<!-- end -->\nmore\n<!-- b -->\n<!-- end -->\n"
    assert put(page, "a", "new") == page.replace("old", "new")
    assert put(page, "b", "new").endswith("<!-- b -->\nnew\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no place for 'c'"):
        put(page, "c", "new")
