"""Milliseconds a token and bytes a device, reckoned, for 2 to 16 devices that nobody has at hand.

python benchmarks/star/scale.py [--device pi-5] [--rate 1000] [--delays 0.25,1,5] [--check FILE]

Nothing is run: formulas with figures of device_profiles/ and of the command line. --check puts
them beside what `reduce.py --json FILE` measured. Prints tables, writes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomllib

PROFILES = Path(__file__).parents[2] / "device_profiles"
GRAIN = 32  # feed-forward columns that stay together
BYTES = {"fp32": 4.0, "int4": 0.625}  # of a weight; int4: a float32 scale for every 32
WIRES: dict[str, Callable[[int], int]] = {"f32": lambda h: 4 * h, "q8": lambda h: h + 4}
COUNTS = (1, 2, 4, 8, 16)
PREPACK = 0.001  # seconds for each MB of int4, that a session takes to be made (STAR's machine)
POSITIONS = 4096  # of K/V


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder of the Llama kind: sizes in numbers."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int

    def blocks(self, devices: int) -> tuple[int, int]:
        """Weights of a layer's attention and of its feed-forward part, on who has most of each."""
        queries, keys = self._heads(devices)
        grains = -(-self.inner // GRAIN)
        columns = min(GRAIN * -(-grains // devices), self.inner)
        return self.hidden * self.head * 2 * (queries + keys), 3 * self.hidden * columns

    def layer(self, devices: int) -> int:
        return sum(self.blocks(devices))

    def known(self, devices: int) -> int:
        """Bytes of K/V in float32, for POSITIONS."""
        return self.layers * 2 * self._heads(devices)[1] * self.head * POSITIONS * 4

    @property
    def voice(self) -> int:
        """Weights of the LM head."""
        return self.vocab * self.hidden

    def _heads(self, devices: int) -> tuple[int, int]:
        """Of queries, and of keys and values, on who has most.

        Queries that share keys and values stay together while there are enough of those; then
        several devices hold the same keys and values.
        """
        each = self.heads // self.kv_heads
        if devices <= self.kv_heads:
            keys = -(-self.kv_heads // devices)
            return keys * each, keys
        queries = -(-self.heads // devices)
        return queries, -(-queries // each)


MODELS = (
    Model("1.1 B (TinyLlama's shape)", 22, 2048, 32, 4, 64, 5632, 32000),
    Model("70 B (Llama 3's shape)", 80, 8192, 64, 8, 128, 28672, 128256),
)


def ring(n: int, delay: float, size: float, rate: float) -> float:
    """Seconds of one sum: 2 (n - 1) hops, each with an n-th of the bytes."""
    return 2 * (n - 1) * (delay + size / (n * rate))


def star(n: int, delay: float, size: float, rate: float) -> float:
    """To the hub and back: two hops whatever n is; all bytes pass the hub's link."""
    return 2 * delay + 2 * (n - 1) * size / rate if n > 1 else 0.0


def mesh(n: int, delay: float, size: float, rate: float) -> float:
    """Everyone to everyone: one hop, n - 1 messages out of each link."""
    return delay + (n - 1) * size / rate if n > 1 else 0.0


def doubling(n: int, delay: float, size: float, rate: float) -> float:
    """Pairs, then pairs of pairs: log2 n rounds, up to the next power of two."""
    return (n - 1).bit_length() * (delay + size / rate)


WAYS = {"ring": ring, "star": star, "mesh": mesh, "doubling": doubling}


@dataclass(frozen=True, slots=True)
class Here:
    """What is assumed. read: bytes a second from memory.  rate: bytes a second of a link.

    software: seconds of a sum that are no network.  disks: bytes a second by name.
    """

    read: float
    rate: float
    software: float
    disks: dict[str, float]


def computing(model: Model, n: int, weights: str, here: Here) -> tuple[float, float]:
    """Seconds a token of all layers on the slowest device, and of the LM head on the hub.

    At batch 1 every weight is read once for each token, and that is what takes the time.
    """
    each = BYTES[weights] / here.read
    return model.layers * model.layer(n) * each, model.voice * each


def summing(model: Model, n: int, delay: float, way: str, wire: str, here: Here) -> float:
    """Seconds a token of two sums for each layer, and of the row that the hub sends out first."""
    if n == 1:
        return 0.0
    size, first = WIRES[wire](model.hidden), 4 * model.hidden
    one = WAYS[way](n, delay, size, here.rate) + here.software
    return 2 * model.layers * one + delay + (n - 1) * first / here.rate


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, row))} |" if row[0] != "---" else "|" + "---|" * len(row))
    print()


def ms(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.0f} s"
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def size(found: float) -> str:
    return f"{found / 1e9:.1f} GB" if found >= 1e9 else f"{found / 1e6:.0f} MB"


def sums(delays: Sequence[float], here: Here) -> None:
    """One sum by every way."""
    hidden = MODELS[-1].hidden
    print(f"One sum of [1, {hidden}] float32, ms, {here.rate * 8 / 1e6:g} Mb/s a link, no software")
    print()
    rows = [
        [f"{1000 * delay:g} ms, {n}"]
        + [ms(way(n, delay, 4 * hidden, here.rate)) for way in WAYS.values()]
        + [ms(mesh(n, delay, WIRES["q8"](hidden), here.rate))]
        for delay in delays
        for n in COUNTS[1:]
    ]
    table(["one way, n", *WAYS, "mesh, q8"], rows)


def tokens(model: Model, weights: str, delays: Sequence[float], here: Here) -> None:
    """A token: computing, and all sums by the star in f32 and by the mesh in q8."""
    print(f"{model.name}, {weights}: ms a token (star f32 / mesh q8)")
    print()
    head = ["n", "layers", "LM head", *(f"{1000 * delay:g} ms one way" for delay in delays)]
    rows = []
    for n in COUNTS:
        layers, voice = computing(model, n, weights, here)
        pairs = [
            [
                layers + voice + summing(model, n, delay, *how, here)
                for how in (("star", "f32"), ("mesh", "q8"))
            ]
            for delay in delays
        ]
        told = [" / ".join(map(ms, pair[: 1 if n == 1 else 2])) for pair in pairs]
        rows.append([n, ms(layers), ms(voice), *told])
    table(head, rows)


def memory(model: Model, weights: str, delay: float, window: int, here: Here) -> None:
    """Bytes of a spoke and of the hub, whole and through a window, and what streaming costs."""
    print(
        f"{model.name}, {weights}: memory of a spoke / of the hub; ms a token with all in memory, "
        f"and with weights that stream from a disk (star f32, {1000 * delay:g} ms one way)"
    )
    print()
    head = ["n", "all in memory", "K/V of that", f"window of {window}", "in memory, ms"]
    rows = []
    for n in COUNTS:
        each, known = BYTES[weights], model.known(n)
        own, voice = model.layers * model.layer(n) * each, model.voice * each
        held = window * max(model.blocks(n)) * each
        full, thin = own + known, held + known
        spans = [size(full), size(full + voice)], [size(thin), size(thin + min(voice, held))]
        step = sum(computing(model, n, weights, here))
        step += summing(model, n, delay, "star", "f32", here)
        streamed = [streaming(own + voice, step, weights, rate) for rate in here.disks.values()]
        told = [f"{ms(one)} ({one / step:.1f}×)" for one in streamed]
        both = [" / ".join(span[-1:] if n == 1 else span) for span in spans]
        rows.append([n, both[0], size(known), both[1], ms(step), *told])
    table([*head, *(f"from {name}" for name in here.disks)], rows)


def streaming(weighs: float, step: float, weights: str, rate: float) -> float:
    """Seconds a token where every weight is read again for each: reading hides behind the step."""
    making = PREPACK * weighs / 1e6 if weights == "int4" else 0.0
    return max(step, weighs / rate + making)


def checked(path: Path) -> None:
    """What `reduce.py --json` measured beside the formula; its relays have a latency, no rate."""
    print("One sum of [1, 4096], ms: measured, reckoned, and what remains for software and relay")
    print()
    rows = []
    for line in json.loads(path.read_text()):
        kind, _, wire = str(line["way"]).partition(" ")
        if line["rows"] == 1 and line["delay_ms"] > 0 and wire == "f32" and kind in WAYS:
            found = WAYS[kind](line["devices"], line["delay_ms"] / 1000, 0, 1) * 1000
            told = [f"{line['delay_ms']:g} ms, {line['devices']}", kind, f"{line['ms']:.2f}"]
            rows.append([*told, f"{found:.1f}", f"{line['ms'] - found:.2f}"])
    table(["one way, n", "way", "measured", "reckoned", "remains"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="pi-5", help="a profile of device_profiles/")
    parser.add_argument("--read", type=float, help="GB/s from memory; else the profile's copy")
    parser.add_argument("--rate", type=float, default=1000, help="Mb/s of a link")
    parser.add_argument("--delays", default="0.25,1,5", help="milliseconds one way")
    parser.add_argument("--software", type=float, default=0.2, help="ms of a sum that are no link")
    parser.add_argument("--window", type=int, default=4, help="blocks: half a layer each")
    parser.add_argument("--sd", type=float, default=90, help="MB/s of the SD card")
    parser.add_argument("--nvme", type=float, default=450, help="MB/s of the NVMe disk")
    parser.add_argument("--check", type=Path, help="what `reduce.py --json` wrote")
    options = parser.parse_args()
    if options.check is not None:
        checked(options.check)
        return
    profile = tomllib.loads((PROFILES / f"{options.device}.toml").read_text())
    read = options.read or profile["copy_gb_per_s"]["value"]
    disks = {"SD": options.sd * 1e6, "NVMe": options.nvme * 1e6}
    here = Here(read * 1e9, options.rate * 1e6 / 8, options.software / 1000, disks)
    delays = [float(one) / 1000 for one in options.delays.split(",")]
    print(
        f"{profile['name']}: {read:g} GB/s from memory, {options.rate:g} Mb/s a link, "
        f"{options.software:g} ms of software a sum, disks {options.sd:g} and "
        f"{options.nvme:g} MB/s; K/V of {POSITIONS} positions\n"
    )
    sums(delays, here)
    for model in MODELS:
        for weights in BYTES:
            tokens(model, weights, delays, here)
            memory(model, weights, delays[0], options.window, here)


if __name__ == "__main__":
    main()
