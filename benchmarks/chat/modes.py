"""What each mode costs and gives on nine links: requests, bytes, tokens a second, server's CPU."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from splitrt import Chat, Sampling
from splitrt.relay import Relay

RTTS = (0.001, 0.020, 0.080)  # seconds
UPLINKS = (2.0, 20.0, 100.0)  # Mbit/s; downlinks are the same
TOKENS = 64
PROMPTS = ("Once upon a time", "The little dog wanted to", "One day, Lily and her mother")
MODES: dict[str, dict[str, Any]] = {
    "ask": {"mode": "ask"},
    "cloud": {"mode": "ask", "resume": "tokens"},  # the whole model on the server
    "spec": {"mode": "spec"},
    "spec, tokens": {"mode": "spec", "resume": "tokens"},
    "gated": {"mode": "gated", "theta": 0.8},
    "edge": {"mode": "edge"},
}
START = 120.0  # seconds for the server


@dataclass(frozen=True, slots=True)
class Row:
    """One mode on one link, over all prompts.

    same: share of the prompts whose whole text is that of `ask` (for `spec, tokens`: of `cloud`,
    the server's own model, whose layers are not the device's); alike: of the tokens, up to the
    first that differs.  saved: share of `ask`'s passes through the server's layers.  server_ms: CPU
    of the server's process a token.
    """

    mode: str
    rtt_ms: float
    uplink_mbps: float
    requests_per_token: float
    bytes_per_token: float
    tokens_per_s: float
    first_ms: float
    acceptance: float
    same: float
    alike: float
    saved: float
    server_ms: float


def main() -> None:
    """A line for each mode on each link; all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, or a split one")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--cut", type=int, default=None, help="by default half of the layers")
    parser.add_argument("--weights", default="int8", help="of the device's part")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.model)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = split(options.model, Path(scratch) / "model", options.cut, options.weights)
        rows = measured(folder, Sampling(temperature=options.temperature, seed=1))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def split(model: Path, to: Path, cut: int | None, weights: str) -> Path:
    """A model directory: the one that was given, or the checkpoint cut."""
    if (model / "model.toml").exists():
        return model
    from splitrt.train import divide

    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    cut = cut or layers // 2
    exits = sorted({max(1, cut // 2), cut})
    divide(model, to, cut=cut, exits=exits, weights=weights, resume=("hidden", "tokens"))
    return to


def serve(folder: Path) -> None:
    """The server's process: one thread of torch."""
    from splitrt.cloud import Server

    with Server(folder, port=0, threads=1) as server:
        print(server.address, flush=True)
        sys.stdin.read()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and number."""
    words = [sys.executable, __file__, "--model", str(folder), "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes)
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(START)


def measured(folder: Path, sampling: Sampling) -> list[Row]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    rows = []
    with serving(folder) as (address, pid):
        for rtt in RTTS:
            for mbps in UPLINKS:
                with Relay(address, trace=mbps, down=mbps, rtt=rtt) as relay:
                    rows += link(folder, relay.address, pid, prompts, (rtt, mbps), sampling)
    return rows


def link(
    folder: Path,
    address: str,
    pid: int,
    prompts: Sequence[Sequence[int]],
    way: tuple[float, float],
    sampling: Sampling,
) -> list[Row]:
    """All modes on one link, `ask` first."""
    texts: dict[str, list[list[int]]] = {}
    asked, rows = 1, []
    for name in MODES:
        with Chat(folder, address, patience=30.0, sampling=sampling, **MODES[name]) as chat:
            list(chat.answer(prompts[0][:1], most=4))  # connected, and warm
            before, found, tallies = cpu(pid), [], []
            for prompt in prompts:
                chat.truncate(0)
                found.append([token.id for token in chat.answer(prompt, most=TOKENS)])
                tallies.append(chat.tally)
            after = cpu(pid)
        tokens = sum(tally.tokens for tally in tallies)
        requests = sum(tally.requests for tally in tallies)
        texts[name] = found
        asked = requests if name == "ask" else asked
        right = texts["cloud" if name == "spec, tokens" else "ask"]
        alike = sum(shared(one, other) for one, other in zip(right, found, strict=True))
        row = Row(
            mode=name,
            rtt_ms=1000 * way[0],
            uplink_mbps=way[1],
            requests_per_token=round(requests / tokens, 3),
            bytes_per_token=round(sum(tally.up for tally in tallies) / tokens, 1),
            tokens_per_s=round(tokens / sum(tally.seconds for tally in tallies), 1),
            first_ms=round(1000 * sorted(tally.first for tally in tallies)[len(tallies) // 2], 1),
            acceptance=round(
                sum(tally.accepted for tally in tallies)
                / max(1, sum(tally.drafted for tally in tallies)), 3
            ),
            same=round(sum(a == b for a, b in zip(right, found, strict=True)) / len(right), 3),
            alike=round(alike / sum(map(len, right)), 3),
            saved=round(1 - requests / asked, 3),
            server_ms=round(1000 * (after - before) / tokens, 2),
        )  # fmt: skip
        rows.append(row)
        print(readable(row), flush=True)
    return rows


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def readable(row: Row) -> str:
    return (
        f"{row.rtt_ms:4.0f} ms {row.uplink_mbps:4.0f} Mb/s  {row.mode:13s}"
        f"{row.tokens_per_s:7.1f} tokens/s  {row.requests_per_token:.2f} requests/token  "
        f"{row.bytes_per_token:6.1f} B/token  same {row.same:4.0%} alike {row.alike:4.0%}  "
        f"saved {row.saved:4.0%}  server {row.server_ms:.1f} ms/token  first {row.first_ms:.0f} ms"
    )


if __name__ == "__main__":
    main()
