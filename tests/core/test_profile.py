"""Device profiles: the shipped ones load, and what is wrong in one is said by its key."""

from __future__ import annotations

import re

import pytest
import tomli_w
import tomllib

from splitrt.core.profile import Profile, head_ms, profiles
from splitrt.errors import ProfileError
from tests.conftest import ROOT

FOLDER = ROOT / "device_profiles"
GOOD = tomllib.loads((FOLDER / "jetson-nano.toml").read_text()) | {
    key: tomllib.loads((FOLDER / "pi-4.toml").read_text())[key] for key in ("idle_w", "load_w")
}
FIGURES = [key for key, value in GOOD.items() if isinstance(value, dict)]


def written(tmp_path, table):
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def test_every_shipped_profile_loads_and_each_figure_has_a_source():
    found = profiles()
    assert set(found) == {path.stem for path in FOLDER.glob("*.toml")}
    assert {"pi-zero-2w", "pi-3b-plus", "pi-4", "pi-5", "jetson-nano", "laptop"} <= set(found)
    times = [profile.mobilenet_v2_ms.value for profile in found.values()]
    assert times == sorted(times, reverse=True)
    for name, profile in found.items():
        assert Profile.load(name) == Profile.load(FOLDER / f"{name}.toml") == profile
        assert not profile.mobilenet_v2_ms.estimated or name == "laptop"


def test_the_profiles_are_part_of_a_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["device_profiles"] == "splitrt/device_profiles"


def test_a_head_is_estimated_between_thin_and_wide_layers():
    profile = Profile.load("pi-4")
    slow, fast = profile.macs_per_ms
    assert slow == pytest.approx(300_800_000 / 61.9) and fast == pytest.approx(4.089e9 / 262.8)
    found = head_ms(profile, 300_800_000)
    assert found.estimated and found.high_ms == pytest.approx(61.9)
    assert 0 < found.low_ms < found.high_ms and str(found) == "19–62"
    assert head_ms(profile, 0).high_ms == 0
    with pytest.raises(ProfileError, match="help:"):
        head_ms(profile, -1)


def test_a_profile_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Profile.load("pi-4").cores = 8


@pytest.mark.parametrize("wrong", [-1, 0, True, [], "4", float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("key", FIGURES)
def test_every_number_that_is_wrong_is_named(tmp_path, key, wrong):
    name = "values" if "values" in GOOD[key] else "value"
    told(written(tmp_path, GOOD | {key: GOOD[key] | {name: wrong}}), f"{key}.{name}")
    told(written(tmp_path, GOOD | {"cores": wrong}), "cores")


@pytest.mark.parametrize("key", ["name", "cpu", "python", "runtime"])
@pytest.mark.parametrize("wrong", ["", 3, "x" * 401, True])
def test_every_word_that_is_wrong_is_named(tmp_path, key, wrong):
    told(written(tmp_path, GOOD | {key: wrong}), key)


@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_without_source_or_flag_is_refused(tmp_path, key):
    for part, wrong in (("source", ""), ("source", 1), ("estimated", 1), ("estimated", "no")):
        told(written(tmp_path, GOOD | {key: GOOD[key] | {part: wrong}}), f"{key}.{part}")
    for part in ("source", "estimated"):
        left = {name: value for name, value in GOOD[key].items() if name != part}
        told(written(tmp_path, GOOD | {key: left}), f"{key}.{part} is missing")
    told(written(tmp_path, GOOD | {key: 3.0}), key)


OPTIONAL = {
    "board", "gpu_mobilenet_v2_ms", "gpu_resnet50_ms", "copy_gb_per_s", "idle_w", "load_w",
    "power_modes_w", "send_uj_per_byte",
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_key_is_named_unless_no_source_may_state_it(tmp_path, key):
    path = written(tmp_path, {name: value for name, value in GOOD.items() if name != key})
    if key in OPTIONAL:
        assert getattr(Profile.load(path), key) is None
    else:
        told(path, f"{key} is missing")


def test_an_unknown_key_names_the_nearest(tmp_path):
    told(written(tmp_path, GOOD | {"core": 4}), "did you mean 'cores'")
    table = GOOD | {"load_w": GOOD["load_w"] | {"sources": "x"}}
    told(written(tmp_path, table), "did you mean 'source'")


def test_what_is_no_profile_is_refused(tmp_path):
    told("pi-44", "did you mean 'pi-4'")
    told("toaster", "shipped are")
    told(tmp_path / "none.toml", "no profile at")
    told(str(tmp_path), "no profile at")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    told(tmp_path / "a.toml", "not TOML")
    (tmp_path / "a.toml").write_text("name =")
    told(tmp_path / "a.toml", "not TOML")
    (tmp_path / "a.toml").write_text("#" * 270_000)
    told(tmp_path / "a.toml", "larger than 256 KiB")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("pi4", "pi-4"), ("Pi_5", "pi-5"), ("rpi5", "pi-5"), ("raspberry-pi-4", "pi-4"),
        ("pi3b+", "pi-3b-plus"), ("pizero2w", "pi-zero-2w"), ("JetsonNano", "jetson-nano"),
    ],
)  # fmt: skip
def test_a_shipped_profile_is_found_by_its_short_name(said, meant):
    assert Profile.load(said) == Profile.load(FOLDER / f"{meant}.toml")


ROW = {
    "model": "small", "digest": "ab" * 32, "part": "head", "name": "w8", "threads": 1,
    "macs": 2_000_000, "p50_ms": 4.0, "p95_ms": 5.0, "rounds": 50, "source": "measured",
    "estimated": False,
}  # fmt: skip
WHOLE = ("mobilenet_v2_ms", "resnet50_ms")


def test_a_measured_profile_is_the_same_after_it_was_saved(tmp_path):
    other = ROW | {"name": "w16", "threads": 4, "macs": 9_000_000, "p50_ms": 4.5}
    odd = {"name": 'a "board"\\ü', "measured": [ROW, other]}
    profile = Profile.load(written(tmp_path, GOOD | odd))
    profile.save(tmp_path / "saved.toml")
    assert Profile.load(tmp_path / "saved.toml") == profile and len(profile.measured) == 2
    assert profile.name == odd["name"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "saved.toml"]
    with pytest.raises(ProfileError, match="cannot be written"):
        profile.save(tmp_path / "nowhere" / "saved.toml")


@pytest.mark.parametrize("name", ["pi-4", "jetson-orin-nano", "laptop"])
def test_a_shipped_profile_is_the_same_after_it_was_saved(tmp_path, name):
    Profile.load(name).save(tmp_path / "saved.toml")
    assert Profile.load(tmp_path / "saved.toml") == Profile.load(name)


def test_a_file_that_could_not_be_replaced_is_left_as_it_was(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ProfileError, match="cannot be written"):
        Profile.load("pi-4").save(tmp_path / "folder.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.toml"]


def test_measured_heads_stand_in_for_whole_networks(tmp_path):
    heads = [ROW, ROW | {"threads": 2, "p50_ms": 2.0}, ROW | {"name": "w16", "macs": 8_000_000}]
    bare = {key: value for key, value in GOOD.items() if key not in WHOLE}
    profile = Profile.load(written(tmp_path, bare | {"measured": heads}))
    assert profile.macs_per_ms == (1e6, 2e6)  # the faster of two rows of one head
    assert head_ms(profile, 3_000_000).high_ms == 3
    told(written(tmp_path, bare), "mobilenet_v2_ms is missing")
    paceless = Profile.load(written(tmp_path, bare | {"measured": [ROW | {"part": "codec"}]}))
    with pytest.raises(ProfileError, match="no head whose MACs are known"):
        head_ms(paceless, 1)


def test_what_was_measured_is_found_by_model_part_and_name(tmp_path):
    rows = [ROW, ROW | {"threads": 2, "p50_ms": 3.0}, ROW | {"part": "exit", "p50_ms": 1.0}]
    profile = Profile.load(written(tmp_path, GOOD | {"measured": rows}))
    digest = bytes.fromhex(ROW["digest"])
    assert profile.took(digest, "head", "w8") == 3.0
    assert profile.took(digest, "exit", "w8") == 1.0
    assert profile.took(digest, "head", "w16") is None
    assert profile.took(bytes(32), "head", "w8") is None


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("digest", "ab"), ("part", "heads"), ("threads", 0), ("threads", 1.5), ("p50_ms", 0),
        ("p50_ms", "4"), ("p50_ms", float("nan")), ("macs", -1), ("rounds", 0), ("source", ""),
        ("estimated", 0), ("model", 3), ("name", ""),
    ],
)  # fmt: skip
def test_a_wrong_timing_is_named(tmp_path, key, wrong):
    told(written(tmp_path, GOOD | {"measured": [ROW, ROW | {key: wrong}]}), f"measured.1.{key}")


def test_a_timing_has_every_key_no_other_and_no_p95_below_its_median(tmp_path):
    left = {name: value for name, value in ROW.items() if name != "p50_ms"}
    told(written(tmp_path, GOOD | {"measured": [left]}), "measured.0.p50_ms is missing")
    told(written(tmp_path, GOOD | {"measured": [ROW | {"thread": 2}]}), "did you mean 'threads'")
    told(written(tmp_path, GOOD | {"measured": [ROW | {"p95_ms": 3.0}]}), "less than p50_ms")
    told(written(tmp_path, GOOD | {"measured": 3}), "measured")


def test_a_heads_watts_are_those_above_idle():
    pi = Profile.load("pi-4")
    assert pi.working_w == pytest.approx(6.4 - 2.7)
    assert (
        Profile.load("jetson-nano").working_w == 10 and Profile.load("jetson-nano").load_w.estimated
    )
    assert Profile.load("laptop").working_w is None
    head = pi.load_w.model_copy(update={"value": 3.7})
    assert pi.model_copy(update={"head_w": head}).working_w == pytest.approx(1.0)


def told(source, words):
    with pytest.raises(ProfileError, match=re.escape(words)) as caught:
        Profile.load(source)
    assert "\nhelp: " in str(caught.value)
