"""Links: the generator has the rates it was fitted to; recorded traces are read or refused."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core import links
from splitrt.errors import SplitrtError


@pytest.mark.parametrize("name", ["lte-poor", "lte-good", "lte-best", "umts"])
def test_a_generated_link_has_the_rates_it_was_fitted_to(name):
    model = links.link(name)
    trace = links.generate(model, 6000, seed=3)
    flowing = trace.mbps[trace.mbps > 0]
    assert np.median(flowing) == pytest.approx(model.median_mbps, rel=0.15)
    assert np.log(flowing).std() == pytest.approx(model.sigma, rel=0.15)
    down = (trace.mbps == 0).mean()
    assert down == pytest.approx(model.outages_per_minute * model.outage_s / 60, abs=0.04)


def test_the_same_seed_gives_the_same_link_and_another_seed_another():
    one, two, three = (links.generate(links.link("lte-fair"), 60, seed).mbps for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_an_outage_can_be_cut_into_a_trace():
    trace = links.broken(links.generate(links.link("4mbps"), 30), 10, 20)
    assert trace.at(5) == 4 and trace.at(15) == 0 and trace.at(25) == 4
    assert trace.carried()[-1] == 20 * 4e6 / 8


def test_a_recorded_trace_holds_each_rate_until_the_next(tmp_path):
    (tmp_path / "a.csv").write_text("seconds,mbps\n10,1\n10.5,3\n11.0,0\n12,5\n")
    trace = links.read(tmp_path / "a.csv")
    assert trace.mbps.tolist() == [1, 1, 3, 3, 0, 0, 0, 0]
    (tmp_path / "b.txt").write_text("# a comment\n0 1\n1 2\n")
    assert links.read(tmp_path / "b.txt").mbps.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "text", ["", "1,2\n", "2,1\n1,1\n", "0,1\n1,x\n", "0,-1\n1,2\n", "0,nan\n1,2\n", "0,1\n9e9,1\n"]
)
def test_what_is_no_trace_is_said(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SplitrtError):
        links.read(tmp_path / "a.csv")


def test_an_unknown_link_names_the_nearest():
    with pytest.raises(SplitrtError, match="lte-fair"):
        links.link("lte-fare")
    assert links.link("0.5mbps").median_mbps == 0.5
    with pytest.raises(SplitrtError):
        links.link("-1mbps")


def test_a_link_is_found_by_kind_by_rate_or_by_its_trace(tmp_path):
    (tmp_path / "drive.csv").write_text("0,1\n1,2\n")
    assert links.find(str(tmp_path / "drive.csv")).mbps.tolist() == [1, 1, 1, 1]
    assert links.find("4mbps", seconds=2).mbps.tolist() == [4] * 8
    one = links.find("umts", seconds=60, seed=1)
    assert np.array_equal(one.mbps, links.generate(links.link("umts"), 60, 1).mbps)
    with pytest.raises(SplitrtError, match=r"did you mean 'drive\.csv'"):
        links.find(str(tmp_path / "drives.csv"))
    with pytest.raises(SplitrtError, match=r"no trace at nothing-like-it\.csv\nhelp"):
        links.find("nothing-like-it.csv")
    with pytest.raises(SplitrtError, match="lte-fair"):
        links.find("lte-fare")
