"""Exits of a language model, trained on frozen layers to say early what the last layer will say.

Each exit is a gain after RMSNorm and x + A x before the model's own LM head. It learns the last
layer's distribution (Hinton et al. 2015) from the rows that the device really makes, as quantised
as they are and sent through the codec; LayerSkip (Elhoushi et al. 2024) drafts with such exits.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from splitrt.cloud.layers import LARGEST, Layers, Part
from splitrt.core.language import LAYERS, TOKENIZER, Bin, Exit, Language
from splitrt.core.manifest import NAME, verified
from splitrt.core.rows import Rows
from splitrt.edge.decoder import Decoder, heard
from splitrt.errors import ModelError
from splitrt.train.checkpoint import bar
from splitrt.train.divide import digest
from splitrt.train.exits import calibrate, calibration_error
from splitrt.train.gqa import exit_graph

TEXT = 256  # tokens of a piece of text
HELD = 10  # one piece in so many is held out
FEWEST = 2 * HELD  # pieces
MOST_HELD = 8000  # held-out positions that the device's own exit is asked about
LOGITS = 1 << 26  # numbers that these may be
BATCH = 256  # rows of a step
RATE = 1e-3
BINS = 8  # of confidence


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A text as device and server hear it, all its pieces one after the other.

    rows: after each exit's layer, float32 [N, hidden].  ends: after the last layer.
    """

    rows: dict[int, torch.Tensor]
    ends: torch.Tensor


class Last:
    """The last norm and the LM head: float32 rows [N, hidden] -> logits [N, vocab]."""

    def __init__(self, folder: Path, manifest: Language) -> None:
        self.eps = manifest.shape.eps
        path = verified(folder, manifest, LAYERS, largest=LARGEST)
        with safe_open(path, "pt") as file:
            self.gain = file.get_tensor("model.norm.weight").float()
            self.head = file.get_tensor("lm_head.weight").float()

    def __call__(self, ends: torch.Tensor) -> torch.Tensor:
        rows = functional.rms_norm(ends, self.gain.shape, self.gain, self.eps)
        return functional.linear(rows, self.head)


class Correction(nn.Module):
    """An exit: float32 rows [N, hidden] -> rows for the LM head."""

    def __init__(self, gain: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(gain.clone())
        self.adapter = nn.Linear(len(gain), len(gain), bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        x = functional.rms_norm(rows, self.gain.shape, self.gain, self.eps)
        return x + self.adapter(x)


@dataclass(frozen=True, slots=True)
class Found:
    """An exit on held-out text. kl: nats from the last layer's distribution."""

    kl: float
    accepted: float
    temperature: float
    ece: float
    bins: tuple[Bin, ...]


def early(
    folder: str | Path,
    text: str | Path,
    *,
    tokens: int = 200_000,
    epochs: int = 3,
    threads: int = 1,
    seed: int = 0,
    shown: bool = False,
) -> Language:
    """Train and calibrate every exit of a language model's directory on a text, in place.

    text: a .txt, or a .jsonl with a `text` a line; either may be gzipped.  tokens: of it, at most.
    The layers stay as they are. One piece of text in HELD is held out: an exit that is no better
    there than the one before is dropped, and what model.toml says of exits was measured there, as
    they run on the device. ModelError if the text is too short.
    """
    torch.set_num_threads(threads)
    folder, manifest = Path(folder), Language.load(folder)
    pieces = _pieces(folder, manifest, texts(Path(text)), tokens)
    random.Random(seed).shuffle(pieces)
    held = len(pieces) // HELD
    layers, decoder = Layers(folder, manifest), Decoder(folder, manifest, threads=threads)
    last = Last(folder, manifest)
    with bar(shown, len(pieces)) as advance:
        judging, learning = (
            _heard(decoder, layers, part, lambda: advance("listen", 1))
            for part in (pieces[:held], pieces[held:])
        )
    torch.manual_seed(seed)
    for one in manifest.exits:
        trained = _trained(learning.rows[one.layer], learning.ends, last, epochs, shown)
        fresh = _written(folder, manifest, one, trained)
        before, after = (_found(folder, way, one.layer, judging, last) for way in (manifest, fresh))
        kept, found = (fresh, after) if after.kl < before.kl else (manifest, before)
        manifest = _recorded(kept, one.layer, found)
        _sign(folder, manifest)
        for lost in (one, fresh.exit(one.layer)):
            _forget(folder, manifest, lost)
    return Language.load(folder)


def texts(path: Path) -> Iterator[str]:
    """The texts of a .txt (parted at empty lines) or of a .jsonl file, gzipped or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    name = path.name.removesuffix(".gz")
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            if name.endswith(".jsonl"):
                for line in file:
                    yield str(json.loads(line)["text"])
            else:
                yield from file.read().split("\n\n")
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is no text: {error}\nhelp: .txt, or .jsonl with a `text` a line; .gz of them"
        ) from error


def _pieces(folder: Path, manifest: Language, found: Iterator[str], most: int) -> list[list[int]]:
    """TEXT tokens each, from the beginnings of texts on; ModelError if there are too few."""
    read = verified(folder, manifest, TOKENIZER, largest=1 << 28).read_bytes()
    tokenizer = Tokenizer.from_buffer(read)
    begin = [] if manifest.begins is None else [manifest.begins]
    longest = min(TEXT, manifest.longest)
    pieces, count = [], 0
    for text in found:
        ids = [*begin, *tokenizer.encode(text, add_special_tokens=False).ids]
        for start in range(0, len(ids) - 1, longest):
            pieces.append(ids[start : start + longest])
            count += len(pieces[-1])
        if count >= most:
            break
    if len(pieces) < FEWEST:
        raise ModelError(f"{count} tokens of text\nhelp: {FEWEST} pieces of {longest} or more")
    return pieces


def _heard(
    decoder: Decoder, layers: Layers, pieces: Sequence[list[int]], advance: Callable[[], None]
) -> Heard:
    codec = Rows(decoder.manifest.codec, decoder.manifest.shape.hidden)
    rows: dict[int, list[np.ndarray]] = {one.layer: [] for one in decoder.manifest.exits}
    ends = []
    for ids in pieces:
        decoder.truncate(0)
        for layer, found in decoder.through(ids).items():
            rows[layer].append(found)
        sent = codec.decode(codec.encode(rows[decoder.manifest.cut][-1]), len(ids))
        cache = layers.cache("hidden")
        cache.grow(len(ids))
        layers.step([Part(cache, 0, sent)])
        ends.append(cache.ends[: len(ids)].float().cpu())
        advance()
    joined = {layer: torch.from_numpy(np.concatenate(found)) for layer, found in rows.items()}
    return Heard(joined, torch.cat(ends))


def _trained(
    rows: torch.Tensor, ends: torch.Tensor, last: Last, epochs: int, shown: bool
) -> Correction:
    """The exit whose distribution is nearest to the last layer's, after so many epochs."""
    exit, steps = Correction(last.gain, last.eps), epochs * math.ceil(len(rows) / BATCH)
    optimiser = torch.optim.AdamW(exit.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    with bar(shown, steps) as advance:
        for batch in _batches(len(rows), epochs):
            guess = functional.linear(exit(rows[batch]), last.head)
            loss = _nats(guess, last(ends[batch])).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            advance(f"exit, {loss.item():.2f} nats", 1)
    return exit


def _batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count).split(BATCH)


def _nats(guess: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of logits [N, vocab] from those of the last layer: [N]."""
    guess, said = guess.log_softmax(1), said.log_softmax(1)
    return functional.kl_div(guess, said, log_target=True, reduction="none").sum(1)


def _written(folder: Path, manifest: Language, one: Exit, trained: Correction) -> Language:
    """The manifest with that exit, in files whose name says what they hold."""
    gain, adapter = trained.gain.detach().numpy(), trained.adapter.weight.detach().numpy()
    mark = hashlib.sha256(gain.tobytes() + adapter.tobytes()).hexdigest()[:8]
    graph = folder / f"exit-{one.layer}-{mark}.onnx"
    exit_graph(graph, gain, manifest.shape.eps, adapter, weights=manifest.weights)
    files = {name: sha for name, sha in manifest.files.items() if name not in _names(one)}
    fresh = one.model_copy(update={"file": graph.name})
    files |= {name: digest(folder / name) for name in _names(fresh) if (folder / name).exists()}
    return _with(manifest, fresh, files)


def _with(manifest: Language, fresh: Exit, files: dict[str, str]) -> Language:
    exits = [fresh if one.layer == fresh.layer else one for one in manifest.exits]
    return manifest.model_copy(update={"exits": exits, "files": files})


@torch.inference_mode()
def _found(folder: Path, manifest: Language, layer: int, held: Heard, last: Last) -> Found:
    """The exit as the device runs it, on held-out positions spread evenly."""
    most = max(HELD, min(MOST_HELD, LOGITS // manifest.shape.vocab))
    chosen = torch.linspace(0, len(held.ends) - 1, min(most, len(held.ends))).long()
    voiced = heard(folder, manifest, layer, held.rows[layer][chosen].numpy())
    guess, said = torch.from_numpy(np.stack(list(voiced))), last(held.ends[chosen])
    best = said.argmax(1)
    with torch.inference_mode(False), torch.enable_grad():
        temperature = calibrate(guess.clone(), best.clone()).temperature
    confidence, answer = (guess / temperature).softmax(1).max(1)
    right = answer == best
    return Found(
        kl=_nats(guess, said).mean().item(),
        accepted=right.float().mean().item(),
        temperature=temperature,
        ece=calibration_error(confidence, right),
        bins=_bins(confidence, right),
    )


def _bins(confidence: torch.Tensor, right: torch.Tensor) -> tuple[Bin, ...]:
    """Confidence in BINS of the same number of drafts."""
    parts = confidence.argsort().tensor_split(BINS)
    return tuple(
        Bin(
            low=0.0 if number == 0 else round(confidence[part].min().item(), 4),
            share=round(len(part) / len(right), 4),
            accepted=round(right[part].float().mean().item(), 4),
        )
        for number, part in enumerate(parts)
        if len(part)
    )


def _recorded(manifest: Language, layer: int, found: Found) -> Language:
    said = {
        "temperature": round(found.temperature, 4),
        "accepted": round(found.accepted, 4),
        "ece": round(found.ece, 4),
        "bins": found.bins,
    }
    return _with(manifest, manifest.exit(layer).model_copy(update=said), manifest.files)


def _sign(folder: Path, manifest: Language) -> None:
    """model.toml as the manifest says, whole or not at all."""
    fresh = folder / f"{NAME}.new"
    fresh.write_text(tomli_w.dumps(manifest.model_dump(mode="json", exclude_none=True)))
    fresh.replace(folder / NAME)


def _forget(folder: Path, manifest: Language, lost: Exit) -> None:
    """Delete an exit's files that the manifest does not name."""
    for name in _names(lost):
        if name not in manifest.files:
            (folder / name).unlink(missing_ok=True)


def _names(one: Exit) -> tuple[str, str]:
    """An exit's graph, and the weights beside it."""
    return one.file, str(Path(one.file).with_suffix(".bin"))
