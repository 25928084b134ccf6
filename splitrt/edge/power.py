"""Watts, as the device's own sensors tell them: the rails of a Jetson, the power chip of a Pi 5."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitrt.errors import ProfileError

TOTALS = ("VDD_IN", "POM_5V_IN")  # rails that carry everything
UNUSED = "NC"
SHUNTS = "7"  # not a rail: the driver's sum of the shunts' voltages
PMIC = ("vcgencmd", "pmic_read_adc")
# A Pi 5's meter at the plug against the sum of its power chip's rails, as pitop fits it.
SLOPE, OFFSET = 1.1451, 0.5879
EVERY = 0.05  # seconds between two readings

Run = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class Sensor:
    """What can be read, and `read()`: watts now; OSError or ValueError if it cannot be."""

    source: str
    read: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail's name and its watts now."""

    name: str
    watts: Callable[[], float]


def sensor(root: Path, run: Run) -> Sensor | None:
    """The sensor of this device, if it has one. root: where sys/ lies; run: runs a command."""
    rails = _hwmon(root) or _iio(root)
    if rails:
        totals = [rail for rail in rails if rail.name in TOTALS]
        chosen = totals[:1] or rails
        names = " + ".join(rail.name for rail in chosen)
        return Sensor(f"ina3221, {names}", lambda: sum(rail.watts() for rail in chosen))
    if "volt(" in run(PMIC):
        return Sensor(
            f"{' '.join(PMIC)}, {SLOPE} * sum of V * I + {OFFSET}", lambda: pmic(run(PMIC))
        )
    return None


def pmic(text: str) -> float:
    """Watts of a whole Pi 5 from what `vcgencmd pmic_read_adc` prints; ValueError if not that."""
    found = re.findall(r"(\S+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)", text)
    amperes = {name: float(number) for name, kind, number in found if kind == "A"}
    volts = {name: float(number) for name, kind, number in found if kind == "V"}
    both = amperes.keys() & volts.keys()
    if not both:
        raise ValueError("no rail with both a voltage and a current")
    return SLOPE * sum(amperes[name] * volts[name] for name in both) + OFFSET


def command(words: Sequence[str]) -> str:
    """What a command prints; nothing if it fails or there is none."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def mean(found: Sensor, seconds: float, work: Callable[[], object] | None = None) -> float:
    """Mean watts over so many seconds, idle or with `work` done again and again.

    ProfileError if no reading succeeds.
    """
    readings: list[float] = []
    over = threading.Event()
    reader = threading.Thread(target=_sample, args=(found, readings, over), name="power")
    reader.start()
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if work is None:
                time.sleep(min(EVERY, seconds))
            else:
                work()
    finally:
        over.set()
        reader.join()
    if not readings:
        raise ProfileError(f"{found.source} gives no readings\nhelp: may this user read it?")
    return sum(readings) / len(readings)


def _sample(found: Sensor, readings: list[float], over: threading.Event) -> None:
    """At least one reading is tried."""
    while True:
        with contextlib.suppress(OSError, ValueError):  # a rail that is off for a moment
            readings.append(found.read())
        if over.wait(EVERY):
            return


def _hwmon(root: Path) -> list[Rail]:
    """JetPack 5 and 6: in*_label beside millivolts and milliamperes."""
    rails = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for label in sorted(chip.glob("in*_label")):
            channel = label.name[2:].removesuffix("_label")
            volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if channel != SHUNTS and volts.is_file() and amperes.is_file():
                rails.append(Rail(_text(label), _product(volts, amperes)))
    return _used(rails)


def _iio(root: Path) -> list[Rail]:
    """JetPack 4: rail_name_* beside milliwatts."""
    rails = []
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        if power.is_file():
            rails.append(Rail(_text(label), _thousandth(power)))
    return _used(rails)


def _used(rails: list[Rail]) -> list[Rail]:
    """Those that have a name and can be read."""
    return [rail for rail in rails if rail.name not in ("", UNUSED) and _readable(rail)]


def _readable(rail: Rail) -> bool:
    try:
        rail.watts()
    except (OSError, ValueError):
        return False
    return True


def _product(volts: Path, amperes: Path) -> Callable[[], float]:
    return lambda: 1e-6 * float(volts.read_text()) * float(amperes.read_text())


def _thousandth(power: Path) -> Callable[[], float]:
    return lambda: 1e-3 * float(power.read_text())


def _text(path: Path) -> str:
    """A file's words; nothing if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""
