"""A model over four devices on a slow link; one is killed in mid-text, and comes back for the next.

python demos/four_pis.py            # about 30 s; --json for one object a line

Devices are processes of this machine. Between the hub and its spokes lie two relays, one for
joining and one for sums: the hub is at 127.0.0.2, and each spoke takes 127.0.0.1, where the relays
are, for the hub. What crosses shares one link, as it would share the hub's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from splitrt import Sampling, SplitrtError
from splitrt.relay import Relay
from splitrt.star import Figures, Star, Way

MODEL = Path(__file__).parent.parent / "models" / "stories-star"
PROMPT = "Once upon a time"
HOW = Sampling(temperature=0.6, seed=3)
SPOKES = ("pi-1", "pi-2", "pi-3")
VICTIM = "pi-2"
PATIENCE = 60.0  # seconds for spokes to join


@dataclass(slots=True)
class Loss:
    """What became of the spoke that was killed, in seconds after that; None: not yet."""

    noticed: float | None = None
    next_token: float | None = None


class Show:
    """Says every second what each device spent on a token, and the words that came meanwhile."""

    def __init__(self, star: Star, tokens: Tokenizer, as_json: bool) -> None:
        self.begun = self._said = time.monotonic()
        self._star, self._tokens, self._json = star, tokens, as_json
        self._ids: list[int] = []

    def scene(self, name: str) -> None:
        """What happens now."""
        if not self._json:
            print(f"{time.monotonic() - self.begun:5.1f} s  -- {name}", flush=True)

    def token(self, id: int) -> None:
        """One more; a second is told when it is over."""
        self._ids.append(id)
        if time.monotonic() - self._said >= 1:
            self.tell()

    def tell(self) -> None:
        """Every device's line."""
        words, self._ids, self._said = self._tokens.decode(self._ids), [], time.monotonic()
        second, devices = time.monotonic() - self.begun, self._star.figures()
        if self._json:
            line = {"second": round(second, 1), "words": words, "devices": list(map(told, devices))}
            print(json.dumps(line), flush=True)
            return
        print(f"{second:5.1f} s  {words!r}")
        for one in devices:
            print(f"         {readable(one)}", flush=True)


def main() -> None:
    """Tell a text twice, and lose a spoke in the first; the verdict is whether anyone can tell."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logging.getLogger("splitrt.star").setLevel(logging.ERROR)  # the show says who is lost
    tokens = Tokenizer.from_file(str(MODEL / "hub" / "tokenizer.json"))
    ids = tokens.encode(PROMPT, add_special_tokens=False).ids
    with Star(MODEL, sampling=HOW, drafts=0) as alone:
        alone.gather(0, 0)
        begin = [] if alone.manifest.begins is None else [alone.manifest.begins]
        ids = [*begin, *ids]
        wanted = [token.id for token in alone.answer(ids, most=options.tokens)]
    with tempfile.TemporaryDirectory() as store, linked(options) as (star, hub):
        with contextlib.ExitStack() as stack:
            places = ((name, Spoke(hub, name, Path(store))) for name in SPOKES)
            spokes = {name: stack.enter_context(spoke) for name, spoke in places}
            show = Show(star, tokens, options.json)
            gathered(star, show, f"{len(SPOKES)} spokes join")
            loss = Loss()
            texts = [list(first(star, ids, options, show, spokes[VICTIM], loss))]
            left = len(star.figures())
            spokes[VICTIM].start()
            gathered(star, show, f"{VICTIM} is started again; the text from its beginning")
            star.truncate(0)
            texts.append(list(said(star, ids, options, show)))
            back = len(star.figures())
        close(wanted, texts, (left, back), loss, options)


@contextlib.contextmanager
def linked(options: argparse.Namespace) -> Iterator[tuple[Star, str]]:
    """The hub, and where spokes reach it: behind a link of --delay and --rate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    link = {"rtt": 2 * options.delay / 1000, "trace": options.rate, "down": options.rate}
    ways = [Way("star", "f32")]  # a mesh would go past the relays
    star = Star(MODEL, listen="127.0.0.2:0", sums_port=port, ways=ways, sampling=HOW, drafts=0)
    sums = f"127.0.0.2:{port}"
    with star, Relay(star.address, **link) as joins, Relay(sums, port=port, **link):
        yield star, joins.address


class Spoke:
    """`splitrt star --join` in a process of its own."""

    def __init__(self, hub: str, name: str, store: Path) -> None:
        command = [sys.executable, "-m", "splitrt.cli", "star", "--join", hub, "--name", name]
        self.name, self._command = name, [*command, "--store", str(store / name)]
        self.start()

    def start(self) -> None:
        """Once, and again after `kill`."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """As a cut of its power would."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Spoke:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()


def gathered(star: Star, show: Show, scene: str) -> None:
    """All spokes are there, and hold their shards. SplitrtError if they do not come."""
    show.scene(scene)
    if len(star.gather(len(SPOKES), PATIENCE)) < len(SPOKES):
        raise SplitrtError("not every spoke has joined\nhelp: try `splitrt star --join` by itself")


def said(star: Star, ids: list[int], options: argparse.Namespace, show: Show) -> Iterator[int]:
    """The text, token by token."""
    for token in star.answer(ids, most=options.tokens):
        show.token(token.id)
        yield token.id
    show.tell()


def first(
    star: Star,
    ids: list[int],
    options: argparse.Namespace,
    show: Show,
    victim: Spoke,
    loss: Loss,
) -> Iterator[int]:
    """The same, but a third of it said, a spoke is killed."""
    watching, killed = None, 0.0
    for place, id in enumerate(said(star, ids, options, show), 1):
        if watching is not None and loss.next_token is None:
            loss.next_token = time.monotonic() - killed
            show.scene(f"the text goes on with {len(star.figures())} devices")
        yield id
        if place == max(1, options.tokens // 3):
            show.scene(f"{victim.name} is killed after {place} tokens")
            killed = time.monotonic()
            watching = threading.Thread(target=watch, args=(star, victim.name, killed, loss))
            watching.start()
            victim.kill()
    if watching is not None:
        watching.join(PATIENCE)


def watch(star: Star, name: str, since: float, loss: Loss) -> None:
    """Until the hub knows that it is lost."""
    while time.monotonic() < since + PATIENCE:
        if name not in {one.name for one in star.roster.guests}:
            loss.noticed = time.monotonic() - since
            return
        time.sleep(0.002)


def told(one: Figures) -> dict[str, object]:
    """A device in numbers."""
    return {
        "name": one.name,
        "shards": list(one.shards),
        "compute_ms": round(one.compute, 2),
        "reduce_ms": round(one.reduce, 2),
        "wait_ms": round(one.wait, 2),
        "peak_mb": round(one.peak / 1e6, 1),
    }


def readable(one: Figures) -> str:
    shards = " ".join(map(str, one.shards))
    return (
        f"{one.name:5} shards {shards:8} compute {one.compute:6.2f} ms  reduce {one.reduce:6.2f} ms"
        f"  wait {one.wait:6.2f} ms  {one.peak / 1e6:4.0f} MB"
    )


def close(
    wanted: list[int],
    texts: list[list[int]],
    devices: tuple[int, int],
    loss: Loss,
    options: argparse.Namespace,
) -> None:
    """The verdict. SplitrtError if the loss was not noticed, or the spoke is not back."""
    if loss.noticed is None or loss.next_token is None:
        raise SplitrtError("the loss was not noticed\nhelp: more --tokens?")
    verdict = {
        "noticed_s": round(loss.noticed, 3),
        "next_token_s": round(loss.next_token, 3),
        "devices_after_loss": devices[0],
        "devices_of_next_text": devices[1],
        "tokens": len(wanted),
        "identical": texts[0] == wanted,
        "next_identical": texts[1] == wanted,
    }
    if options.json:
        print(json.dumps({"verdict": verdict}))
    else:
        yes = {True: "yes", False: "NO, this is a fault"}
        print(
            f"\n{VICTIM} was killed: noticed after {loss.noticed:.2f} s, the next token came after "
            f"{loss.next_token:.2f} s, from {devices[0]} devices.\n"
            f"Text identical to that of one device alone: {yes[verdict['identical']]}.\n"
            f"The next text was told by {devices[1]} devices; identical: "
            f"{yes[verdict['next_identical']]}."
        )
    if not (verdict["identical"] and verdict["next_identical"]):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=1.0, help="milliseconds one way")
    parser.add_argument("--rate", type=float, help="Mbit/s each way; by default no limit")
    parser.add_argument("--tokens", type=int, default=120, help="of each text, 2 or more")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error("--tokens: 2 or more")
    return options


if __name__ == "__main__":
    try:
        main()
    except SplitrtError as error:
        sys.exit(f"error: {error}")
