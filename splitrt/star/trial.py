"""Proof that a star's files fit: a few tokens through every graph of the devices that are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from splitrt.core.shards import (
    EMBEDDING,
    HUB,
    PLAINLY,
    TURNS,
    Device,
    Shards,
    attention,
    feed,
    tiles,
    voice,
)
from splitrt.core.tensors import Tensors
from splitrt.edge.decoder import LARGEST_WEIGHTS
from splitrt.edge.head import session
from splitrt.errors import ModelError
from splitrt.star.block import weighed
from splitrt.star.ends import Ends
from splitrt.star.shard import EVEN, Stack

TRIED = (0, 1)  # tokens


def trial(folder: str | Path, manifest: Shards, held: Sequence[int]) -> np.ndarray | None:
    """Tokens through the shards of these devices, by their numbers: logits [vocab].

    One block of each is loaded at a time. None without the hub: rows that nobody embedded go
    through the layers. ModelError for the first graph that does not load, does not fit, or gives
    numbers that are not finite.
    """
    folder, devices = Path(folder), manifest.devices
    for number in held:
        with _of(devices[number].folder):
            _load(folder, manifest, devices[number])
    hidden = manifest.shape.hidden
    rows = np.linspace(-1, 1, len(TRIED) * hidden, dtype=np.float32).reshape(-1, hidden)
    with ExitStack() as opened:
        stacks = {}
        for number in held:
            with _of(devices[number].folder):
                stack = Stack(folder, manifest, [number], longest=len(TRIED), window=1)
            stacks[devices[number].folder] = opened.enter_context(stack)
        if 0 in held:
            with _of(HUB):
                ends = opened.enter_context(Ends(folder, manifest, window=1))
                rows = _finite(EMBEDDING, ends.embed(TRIED))
        for layer in range(manifest.shape.layers):
            for attends in (True, False):
                parts = [_part(name, one, layer, rows, attends) for name, one in stacks.items()]
                rows = rows + sum(parts)
        if 0 not in held:
            return None
        with _of(HUB):
            return _finite("the LM head", ends.say(rows[-1:]))[0]


def _part(name: str, stack: Stack, layer: int, rows: np.ndarray, attends: bool) -> np.ndarray:
    """What one device adds to the rows."""
    with _of(name):
        (found,) = stack.attend(layer, rows, 0) if attends else stack.feed(layer, rows)
    return _finite(f"{name}/{attention(layer) if attends else feed(layer)}", found)


def _finite(name: str, found: np.ndarray) -> np.ndarray:
    if not np.isfinite(found).all():
        raise ModelError(f"{name} gives numbers that are not finite\nhelp: split the model again")
    return found


def _load(folder: Path, manifest: Shards, one: Device) -> None:
    """What tokens at the first positions through a window do not reach.

    The last positions' turns, and the graphs of a device without a window, where those with one
    have others.
    """
    shape, own = manifest.shape, folder / one.folder
    wanted = manifest.longest, -(-shape.head // EVEN) * EVEN // 2
    tables = Tensors(own, one, TURNS, largest=LARGEST_WEIGHTS)
    for key in ("cosines", "sines"):
        if tables[key].shape != wanted:
            raise ModelError(f"{key} {list(tables[key].shape)}, {list(wanted)} are wanted")
    if manifest.weights not in PLAINLY:
        return
    names = [graph(i) for graph in (attention, feed) for i in range(shape.layers)]
    if one.leads:
        names += [voice(i) for i in range(len(tiles(shape, manifest.weights)))]
    for name in names:
        session(own / name, 1, "CPU", weights=weighed(name))


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Errors say whose files they mean."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except Exception as error:  # ONNX Runtime's own start there
        raise ModelError(
            f"{name}: files do not fit one another: {error}\nhelp: split again"
        ) from error
