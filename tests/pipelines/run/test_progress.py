"""Progress as lines, for where there is no terminal."""

from __future__ import annotations

import pytest

from pipelines.run.progress import Meter


def test_lines_come_seldom_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(100, "embedding", "image", done=0, style="lines")
    for done in range(10, 101, 10):
        meter.draw(done, "embedding", f"embedded {done}/100")
    meter.close()
    assert capsys.readouterr().out == "embedded 10/100\nembedded 100/100\n"


def test_one_run_of_many_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(100, "embedding", "image", done=0, style="nothing")
    meter.draw(100, "embedding", "embedded 100/100")
    meter.say("all is well")
    meter.close()
    assert capsys.readouterr() == ("", "")
