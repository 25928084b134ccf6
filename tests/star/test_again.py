"""What was cut off goes on: a text, a fetch, a star in which nobody speaks for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from splitrt import LinkDown
from splitrt.relay import Relay
from splitrt.star.call import agreed
from splitrt.star.point import Point
from splitrt.star.roster import Roster
from splitrt.wire import star_pb2 as wire
from tests.star.crowd import CALM, LOCAL, Sums, Watched, grown
from tests.star.toy import LONG, Toy, process, until


def test_a_text_goes_on_without_the_dead_and_with_them_again(star_dir, star, tmp_path):
    """Of two spokes one is killed in the middle of a step; the other takes its shard."""
    wanted = grown(star.shape.hidden)
    with Watched(star_dir, star) as watched:
        roster = watched.roster
        with process("join", roster.address, tmp_path / "a", "ann"):
            with process("join", roster.address, tmp_path / "b", "bob") as running:
                ann, bob = sorted(roster.wait(2, LONG), key=lambda one: one.name)
                with Sums(roster, star, 1, {ann: [1], bob: [2]}) as step:
                    assert np.allclose(step([0]), wanted, rtol=1e-5)
                    threading.Timer(0.1, running.kill).start()
                    with pytest.raises(LinkDown):
                        while True:
                            step([0], slow=0.01)
                watched.noticed(bob, time.monotonic())
            with Sums(roster, star, 2, {ann: [1, 2]}) as step:
                assert np.allclose(step([0]), wanted, rtol=1e-5)
                with process("join", roster.address, tmp_path / "b", "bob"):
                    _, again = roster.wait(2, LONG)
                    assert np.allclose(step([0]), wanted, rtol=1e-5)  # its coming disturbs nobody
                    with Sums(roster, star, 3, {ann: [1], again: [2]}) as step:
                        assert np.allclose(step([0]), wanted, rtol=1e-5)


def test_silence_between_texts_ends_nothing(star_dir, star, tmp_path, monkeypatch):
    """The sums' own time runs only in a step."""
    monkeypatch.setattr("splitrt.star.work.agreed", partial(agreed, timeout=0.3))
    with Roster(star_dir, star, LOCAL, patience=CALM) as roster:
        with Point(join=roster.address, layers=Toy, store=tmp_path, name="ann"):
            (ann,) = roster.wait(1, LONG)
            with Sums(roster, star, 1, {ann: [1, 2]}) as step:
                for _ in range(2):
                    assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)
                    time.sleep(1.0)
            assert ann.alive


def test_a_fetch_that_is_cut_goes_on_where_it_was(star_dir, star, tmp_path, monkeypatch):
    """The link is cut in the middle of a file; the spoke joins again, and is told to hold it."""
    asked: list[tuple[str, int]] = []
    cut = threading.Event()
    monkeypatch.setattr("splitrt.star.depot.PIECE", 1000)
    with Roster(star_dir, star, LOCAL, patience=CALM) as roster, Relay(roster.address) as relay:
        depot = roster._lobby._depot
        pieces = depot.pieces

        async def halting(path: Path, offset: int) -> AsyncIterator[wire.Piece]:
            """The first piece of one file, and no more before the cut."""
            asked.append((path.name, offset))
            async for piece in pieces(path, offset):
                yield piece
                if path.name == "feed-1.bin":
                    await asyncio.to_thread(cut.wait, LONG)

        monkeypatch.setattr(depot, "pieces", halting)
        with Point(join=relay.address, layers=Toy, store=tmp_path, name="ann"):
            (ann,) = roster.wait(1, LONG)
            part = tmp_path / "files" / f"{star.devices[2].files['feed-1.bin']}.part"
            with ThreadPoolExecutor(1) as pool:
                given = {"port": 1, "rows": 4, "longest": 64}
                holding = pool.submit(roster.hold, 1, {ann: [2]}, **given)
                until(lambda: part.exists() and part.stat().st_size == 1000, "nothing arrived")
                relay.cut()
                with pytest.raises(LinkDown, match="ann"):
                    holding.result(LONG)
            cut.set()
            until(lambda: ann not in roster.guests and roster.guests, "it did not come again")
            (again,) = roster.guests
            with Sums(roster, star, 2, {again: [1, 2]}) as step:
                assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)
    assert ("feed-1.bin", 1000) in asked
