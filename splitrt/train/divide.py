"""A language model's directory from a checkpoint: what `splitrt split DIR` does."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors import SafetensorError, safe_open

from splitrt.core.language import CHAT, KIND, LAYERS, LONGEST, TOKENIZER, Language
from splitrt.core.manifest import NAME
from splitrt.core.rows import CODECS
from splitrt.core.shards import Portion
from splitrt.errors import ModelError
from splitrt.train.export import About
from splitrt.train.gqa import (
    Attention,
    Feed,
    Layer,
    Matrix,
    cosines,
    ends,
    even,
    exit_graph,
    halves,
    segment,
    voice,
)
from splitrt.train.hf import EMBEDDING, HEAD, NORM, Checkpoint, needed
from splitrt.train.tensors import write

EXITS = "exits.safetensors"  # of a checkpoint whose exits were trained
VOICE = "voice.onnx"
ROOM = 4096  # positions that the device has room for, unless told, of more that were trained
HOLDS = ("fp32", "fp16", "int8", "int4")
SENDS = ("hidden", "tokens")


def divide(
    checkpoint: str | Path,
    to: str | Path,
    *,
    cut: int,
    exits: Sequence[int] | None = None,
    weights: str = "int4",
    resume: Sequence[str] = ("hidden",),
    codec: str = "q8",
    longest: int | None = None,
    about: About | None = None,
) -> Language:
    """Cut a Hugging Face checkpoint after `cut` layers; write the directory `to`, all or nothing.

    exits: layers with an exit; there is always one at the cut.  weights: of the device's part.
    resume: what a device may send, its hidden rows, or tokens for a server that holds all layers.
    longest: positions that the device has room for.  Exits are those of the checkpoint's
    exits.safetensors, else the model's own last norm stands in for them.
    """
    source, to = Checkpoint(checkpoint), Path(to)
    layers = sorted({cut, *(exits or ())})
    _possible(source, cut, layers, weights, resume, codec)
    longest = room(source, longest)
    with anew(to) as made:
        said = _exits(source, made, layers, weights, longest)
        voice(made / VOICE, table(source, HEAD), weights=weights)
        _server(source, made / LAYERS, cut, "tokens" in resume)
        words(source, made)
        told = about or About(recipe=f"splitrt split {source.folder.name}")
        given = {
            "provenance": asdict(told),
            "cut": cut,
            "exits": said,
            "weights": weights,
            "resume": list(resume),
        }
        given |= {"voice": VOICE, "codec": codec, "longest": longest}
        files = {path.name: digest(path) for path in sorted(made.iterdir())}
        sign(source, made, KIND, given, {"files": files})
        return Language.load(made)


def room(source: Checkpoint, longest: int | None) -> int:
    """Positions that a device has room for; ModelError if so many were not trained."""
    found = min(source.positions, ROOM) if longest is None else longest
    if not 2 <= found <= min(source.positions, LONGEST):
        raise ModelError(f"room for {found} positions\nhelp: 2 to {source.positions} were trained")
    return found


@contextmanager
def anew(to: Path) -> Iterator[Path]:
    """A folder to fill, which becomes the model directory `to` if nothing fails."""
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / NAME).exists())):
        raise ModelError(f"{to} exists and is no model directory\nhelp: name a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as fresh:
        made = Path(fresh) / to.name
        made.mkdir()
        yield made
        if to.exists():
            shutil.rmtree(to)
        made.replace(to)


def table(source: Checkpoint, name: str) -> Matrix:
    """The embedding or the LM head, read bit by bit."""
    return Matrix(
        source.shape.vocab,
        source.shape.hidden,
        lambda: source.tensor(name),
        part=lambda rows, columns: source.tensor(name, rows, columns),
    )


def words(source: Checkpoint, folder: Path) -> None:
    """Copy the tokenizer, and the chat template if there is one."""
    shutil.copyfile(source.folder / TOKENIZER, folder / TOKENIZER)
    if source.chat is not None:
        (folder / CHAT).write_text(source.chat, encoding="utf-8")


def _possible(
    source: Checkpoint,
    cut: int,
    layers: Sequence[int],
    weights: str,
    resume: Sequence[str],
    codec: str,
) -> None:
    depth = source.shape.layers
    for wrong, message in (
        (not 1 <= cut < depth, f"no cut after {cut}\nhelp: the model has {depth} layers"),
        (
            layers[0] < 1 or layers[-1] > cut,
            f"exits after {', '.join(map(str, layers))}\nhelp: from 1 to the cut, {cut}",
        ),
        (weights not in HOLDS, f"no weights {weights!r}\nhelp: one of {', '.join(HOLDS)}"),
        (
            not resume or not set(resume) <= set(SENDS) or len(set(resume)) < len(resume),
            f"no resume {','.join(resume)!r}\nhelp: {', '.join(SENDS)}, or both",
        ),
        (codec not in CODECS, f"no codec {codec!r}\nhelp: one of {', '.join(CODECS)}"),
    ):
        if wrong:
            raise ModelError(message)


def _exits(
    source: Checkpoint, folder: Path, layers: Sequence[int], weights: str, room: int
) -> list[dict[str, Any]]:
    """Write the segments between exits, and the exits; what model.toml says of them."""
    turns = cosines(source.shape.rope, room)
    said = []
    for first, last in zip([0, *layers], layers, strict=False):
        names = f"layers-{first}-{last}.onnx", f"exit-{last}.onnx"
        segment(
            folder / names[0],
            [layer(source, i) for i in range(first, last)],
            turns,
            weights=weights,
            hidden=source.shape.hidden,
            table=table(source, EMBEDDING) if first == 0 else None,
        )
        gain, adapter = _exit(source, last)
        exit_graph(folder / names[1], gain, source.shape.eps, adapter, weights=weights)
        said.append({"layer": last, "segment": names[0], "file": names[1]})
    return said


def layer(source: Checkpoint, number: int, part: Portion | None = None) -> Layer:
    """One layer of a checkpoint, or a part of it; its matrices are read when they are written."""
    shape, name = source.shape, f"model.layers.{number}"
    part = Portion.whole(shape) if part is None else part
    return Layer(
        before=source.tensor(f"{name}.input_layernorm.weight"),
        attention=_attention(source, f"{name}.self_attn", shape.windows[number], part),
        between=source.tensor(f"{name}.post_attention_layernorm.weight"),
        feed=_feed(source, f"{name}.mlp", part),
        eps=shape.eps,
    )


def _attention(source: Checkpoint, name: str, window: int, part: Portion) -> Attention:
    shape, size = source.shape, even(source.shape.head)
    asked = slice(part.queries[0] * shape.head, part.queries[1] * shape.head)
    kv_heads, heads = part.heads, part.asking

    def known(one: str, kind: str) -> np.ndarray:
        first = part.keys[0]
        rows = slice(first * shape.head, (part.keys[-1] + 1) * shape.head)
        found = source.tensor(f"{name}.{one}_proj.{kind}", rows)
        each = found.reshape(-1, shape.head, *found.shape[1:])
        return each[np.array(part.keys) - first].reshape(-1, *found.shape[1:])

    def stacked(kind: str) -> np.ndarray:
        q, k, v = (
            source.tensor(f"{name}.q_proj.{kind}", asked),
            known("k", kind),
            known("v", kind),
        )
        padded = halves(q, shape.head), halves(k, shape.head), ends(v, shape.head)
        return np.concatenate(padded)

    def out() -> np.ndarray:
        columns = source.tensor(f"{name}.o_proj.weight", slice(None), asked)
        return ends(columns.T, shape.head).T

    added = "o" in shape.biased and part.leads
    bias = source.tensor(f"{name}.o_proj.bias") if added else None
    rows = (heads + 2 * kv_heads) * size
    sums = stacked("bias") if "qkv" in shape.biased else None
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head=size,
        scale=shape.head**-0.5,
        window=window,
        qkv=Matrix(rows, shape.hidden, lambda: stacked("weight"), sums),
        out=Matrix(shape.hidden, heads * size, out, bias),
        norms=_norms(source, name) if shape.normed else None,
        eps=shape.eps * shape.head / size,
    )


def _norms(source: Checkpoint, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of queries and keys. A mean over padded heads is smaller: gain and eps make up for it."""
    head = source.shape.head
    less = np.float32((head / even(head)) ** 0.5)
    gains = (source.tensor(f"{name}.{one}_norm.weight") for one in "qk")
    queries, keys = (less * halves(gain, head) for gain in gains)
    return queries, keys


def _feed(source: Checkpoint, name: str, part: Portion) -> Feed:
    shape, own = source.shape, slice(*part.columns)

    def both(kind: str) -> np.ndarray:
        parts = (source.tensor(f"{name}.{one}_proj.{kind}", own) for one in ("gate", "up"))
        return np.concatenate(list(parts))

    def down() -> np.ndarray:
        return source.tensor(f"{name}.down_proj.weight", slice(None), own)

    there = "mlp" in shape.biased
    last = source.tensor(f"{name}.down_proj.bias") if there and part.leads else None
    bias = both("bias") if there else None
    return Feed(
        up=Matrix(2 * part.inner, shape.hidden, lambda: both("weight"), bias),
        down=Matrix(shape.hidden, part.inner, down, last),
    )


def _exit(source: Checkpoint, last: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Gain and adapter of the exit after that layer; an adapter of zeros is none."""
    path, hidden = source.folder / EXITS, source.shape.hidden
    if not path.is_file():
        return source.tensor(NORM), None
    try:
        with safe_open(path, "pt") as file:
            there = file.keys()
            if f"exit.{last}.norm" not in there:
                return source.tensor(NORM), None
            gain = file.get_tensor(f"exit.{last}.norm").float().numpy()
            adapter = np.zeros((hidden, hidden), np.float32)
            if f"exit.{last}.adapter" in there:
                adapter = file.get_tensor(f"exit.{last}.adapter").float().numpy()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    if gain.shape != (hidden,) or adapter.shape != (hidden, hidden):
        raise ModelError(
            f"exit {last} of {path} has a norm of {list(gain.shape)} and an adapter of "
            f"{list(adapter.shape)}\nhelp: {hidden} and {hidden}×{hidden} are wanted"
        )
    return gain, adapter if adapter.any() else None


def _server(source: Checkpoint, path: Path, cut: int, whole: bool) -> None:
    """Write the server's weights, in the checkpoint's own names and dtypes."""
    below = {EMBEDDING}
    names = [name for name in needed(source.shape, tied=False) if whole or name not in below]
    if not whole:
        device = tuple(f"model.layers.{layer}." for layer in range(cut))
        names = [name for name in names if not name.startswith(device)]
    write(path, {name: source.lazy(name) for name in names})


def sign(
    source: Checkpoint, folder: Path, kind: str, said: Mapping[str, Any], last: Mapping[str, Any]
) -> None:
    """Write model.toml: what the checkpoint says, and what is given; `last` has the hashes."""
    manifest: dict[str, Any] = {"format": 1, "kind": kind, "name": folder.name}
    manifest |= {"family": source.family, "shape": source.shape.model_dump(mode="json")}
    manifest |= said
    if source.begins is not None:
        manifest["begins"] = source.begins
    manifest["stops"] = list(source.stops)
    manifest |= last
    (folder / NAME).write_text(tomli_w.dumps(manifest))


def digest(path: Path) -> str:
    """sha256 of a file, as model.toml has it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
