"""JPEG and WebP at their best: the whole CIFAR-10 network fine-tuned on what each codec leaves.

    python benchmarks/codecs.py --data DIR --work build/cifar10      # whole.safetensors is there

The split's tail was trained for its bottleneck; so that the comparison is fair, each setting of a
codec gets a network of its own, trained on pictures compressed at that setting. Every setting is
kept in --work as soon as it is done, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from splitrt.train import Frames, Pixels, fast, varied

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "models"))
import cifar10  # noqa: E402  (the recipe is a script beside this folder)

logger = logging.getLogger("codecs")

SIDE = 32
CHUNK = 500  # pictures a task of the pool
PEAK = 0.02  # learning rate of SGD: the network is trained already
EFFORT = 6  # WebP's method: the slowest and smallest


@dataclass(frozen=True, slots=True)
class Setting:
    """A codec, its quality, and the side to which a picture is scaled before it."""

    codec: str  # webp or jpeg
    quality: int
    side: int = SIDE

    def __str__(self) -> str:
        return f"{self.codec}-{self.quality}" + (f"-{self.side}px" if self.side < SIDE else "")

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From `webp-20` or `webp-40-24px`."""
        found = re.fullmatch(r"(webp|jpeg)-(\d{1,3})(?:-(\d{1,2})px)?", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"no setting {text!r}; write webp-20 or jpeg-40-24px")
        made = cls(found[1], int(found[2]), int(found[3] or SIDE))
        if not (0 <= made.quality <= 100 and 4 <= made.side <= SIDE):
            raise argparse.ArgumentTypeError(f"{text!r}: quality 0 to 100, side 4 to {SIDE}")
        return made


SETTINGS = [
    *(Setting("webp", quality) for quality in (1, 5, 10, 20, 40, 60, 80)),
    *(Setting("jpeg", quality) for quality in (5, 10, 20, 40, 60, 80)),
    *(Setting("webp", quality, 24) for quality in (40, 70)),
    Setting("jpeg", 40, 24),
    Setting("webp", 70, 16),
]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Pictures after the codec, uint8 [N, 32, 32, 3], and the bytes of each: file, bare [N].

    bare: without what a receiver may know: the scan of a JPEG with standard tables, the data of
    a WebP without its RIFF and chunk header.
    """

    images: np.ndarray
    file: np.ndarray
    bare: np.ndarray


def encoded(image: np.ndarray, setting: Setting, *, standard: bool = False) -> bytes:
    """A picture as a file, scaled down first where the setting says so.

    A JPEG has Huffman tables of its own, which make the file smallest, or the `standard` ones,
    which a receiver may know beforehand. The picture is the same.
    """
    picture, out = Image.fromarray(image), io.BytesIO()
    if setting.side < SIDE:
        picture = picture.resize((setting.side, setting.side), Image.Resampling.LANCZOS)
    if setting.codec == "webp":
        picture.save(out, "WEBP", quality=setting.quality, method=EFFORT)
    else:
        picture.save(out, "JPEG", quality=setting.quality, optimize=not standard)
    return out.getvalue()


def decoded(file: bytes) -> np.ndarray:
    """The picture of a file at the network's size: uint8 [32, 32, 3]."""
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def bare(file: bytes) -> int:
    """Bytes without the headers: a WebP's VP8 data, a JPEG's scan."""
    if file.startswith(b"RIFF"):
        return len(file) - 20  # RIFF, size, WEBP, VP8, size
    start = file.index(b"\xff\xda")
    length = int.from_bytes(file[start + 2 : start + 4], "big")
    return len(file) - start - 2 - length - 2  # neither the scan's own header nor the end mark


def crossed(images: np.ndarray, setting: Setting) -> Sent:
    """What the codec makes of some pictures; runs in the pool."""
    files = [encoded(image, setting) for image in images]
    return Sent(
        np.stack([decoded(file) for file in files]),
        np.array([len(file) for file in files]),
        np.array([bare(encoded(image, setting, standard=True)) for image in images]),
    )


def compress(images: np.ndarray, setting: Setting, pool: ProcessPoolExecutor) -> Sent:
    """What the codec makes of many pictures, in the pool's processes."""
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    parts = list(pool.map(partial(crossed, setting=setting), chunks))
    return Sent(*(np.concatenate([getattr(p, name) for p in parts]) for name in Sent.__slots__))


def steps(count: int, random: torch.Generator, batch: int) -> Iterator[torch.Tensor]:
    """The places of one epoch's pictures, `batch` at a time; what is left over is left out."""
    for part in torch.randperm(count, generator=random).split(min(batch, count)):
        if len(part) == min(batch, count):
            yield part


def tune(
    first: dict[str, torch.Tensor], sources: list[np.ndarray], labels: np.ndarray, epochs: int,
    seed: int,
) -> cifar10.ResNet:  # fmt: skip
    """The whole network fine-tuned on pictures after the codec, with the recipe's variations.

    sources: the same pictures from the re-compressed and the lossless copy; a coin chooses.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = cifar10.network().train().to(memory_format=torch.channels_last)
    model.load_state_dict(first)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batch, wanted = min(cifar10.BATCH, len(labels)), torch.from_numpy(labels)
    total = max(1, len(labels) // batch * epochs)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (0.1 * total), (total - step) / (0.9 * total))
    )
    for epoch in range(epochs):
        for chosen in steps(len(labels), random, batch):
            x = varied(_either(sources, chosen, random), random)
            x = cifar10.holed(x, cifar10.HOLE, random).contiguous(memory_format=torch.channels_last)
            with fast(x.device):
                logits = model(x)
            loss = functional.cross_entropy(logits.float(), wanted[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            pace.step()
        logger.info("  epoch %d of %d, loss %.3f", epoch + 1, epochs, loss.item())
    return model.eval()


def _either(
    sources: list[np.ndarray], chosen: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    """Normalised pictures [N, 3, 32, 32], each from one of the sources."""
    places = chosen.numpy()
    coin = torch.randint(0, len(sources), (len(places),), generator=random).numpy()
    images = np.stack([sources[source][place] for source, place in zip(coin, places, strict=True)])
    return Pixels()(torch.from_numpy(images))


def measure(
    setting: Setting, data: cifar10.Data, first: dict[str, torch.Tensor],
    pool: ProcessPoolExecutor, *, epochs: int, seed: int,
) -> dict[str, object]:  # fmt: skip
    """Accuracy and bytes of one setting on both tests, before and after the fine-tuning."""
    logger.info("%s", setting)
    tests = {"jpeg_test": data.test, "clean_test_1017": data.clean_test}
    sent = {name: compress(frames.images, setting, pool) for name, frames in tests.items()}
    again = compress(data.train.images, setting, pool).images
    other = again.copy()
    changed = np.flatnonzero((data.lossless != data.train.images).any((1, 2, 3)))
    if len(changed):
        other[changed] = compress(data.lossless[changed], setting, pool).images
    plain = cifar10.network()
    plain.load_state_dict(first)
    tuned = tune(first, [again, other], data.train.labels, epochs, seed)
    found: dict[str, object] = {**asdict(setting), "setting": str(setting), "epochs": epochs}
    for name, frames in tests.items():
        seen = Frames(sent[name].images, frames.labels)
        found[name] = {
            "frames": len(frames),
            "accuracy": round(cifar10.accuracy(tuned, seen), 4),
            "accuracy_untuned": round(cifar10.accuracy(plain, seen), 4),
            **_sizes("file", sent[name].file),
            **_sizes("bare", sent[name].bare),
        }
    logger.info("  %s", json.dumps(found))
    return found


def _sizes(name: str, sizes: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_bytes_mean": round(float(sizes.mean()), 1),
        f"{name}_bytes_p95": float(np.percentile(sizes, 95)),
    }


def control(data: cifar10.Data, first: dict[str, torch.Tensor], epochs: int, seed: int) -> dict:
    """The same extra epochs without a codec: what the fine-tuning alone is worth."""
    logger.info("no codec")
    sources = [data.train.images, data.lossless]
    tuned = tune(first, sources, data.train.labels, epochs, seed)
    plain = cifar10.network()
    plain.load_state_dict(first)
    return {"setting": "none", "epochs": epochs} | {
        name: {
            "frames": len(frames),
            "accuracy": round(cifar10.accuracy(tuned, frames), 4),
            "accuracy_untuned": round(cifar10.accuracy(plain, frames), 4),
        }
        for name, frames in (("jpeg_test", data.test), ("clean_test_1017", data.clean_test))
    }


def limited(data: cifar10.Data, limit: int | None) -> cifar10.Data:
    """The first so many pictures of each set, for a trial."""
    if limit is None:
        return data
    first = slice(0, limit)
    return cifar10.Data(
        data.train[first], data.lossless[first], data.test[first], data.clean_test[first]
    )


def main() -> None:
    """Measure what --work does not hold yet, write all of it to --to."""
    options = _options()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    weights = options.work / "whole.safetensors"
    if not weights.exists():
        sys.exit(f"error: {options.work} has no whole.safetensors\nhelp: run models/cifar10.py")
    data = limited(cifar10.Data.load(options.data), options.limit)
    first = load_file(weights)
    told = {"epochs": options.epochs, "seed": options.seed, "limit": options.limit}
    kept = options.work / "codecs"
    kept.mkdir(exist_ok=True)
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        rows = []
        for setting in [None, *options.setting]:
            name = "-".join(map(str, (setting or "none", *told.values())))
            file = kept / f"{name}.json"
            if not file.exists():
                if setting is None:
                    row = control(data, first, options.epochs, options.seed)
                else:
                    row = measure(setting, data, first, pool, epochs=options.epochs,
                                  seed=options.seed)  # fmt: skip
                file.write_text(json.dumps(row))
            rows.append(json.loads(file.read_text()))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**told, "rows": rows}, indent=1))
    print(*_table(rows), sep="\n")


def _table(rows: list[dict]) -> Iterator[str]:
    """A line a setting, those of fewer bytes first."""
    yield f"{'setting':14} {'jpeg_test':>17} {'file / bare':>13} {'clean':>17} {'file / bare':>13}"
    rows = sorted(rows, key=lambda row: row["jpeg_test"].get("file_bytes_mean", 1e9))
    for row in rows:
        words = [f"{row['setting']:14}"]
        for part in (row["jpeg_test"], row["clean_test_1017"]):
            words.append(f"{part['accuracy_untuned']:7.2%} → {part['accuracy']:7.2%}")
            sizes = (part.get("file_bytes_mean"), part.get("bare_bytes_mean"))
            words.append(f"{' / '.join('-' if s is None else f'{s:,.0f}' for s in sizes):>13}")
        yield " ".join(words)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--work", type=Path, default=Path("build/cifar10"))
    parser.add_argument("--json", type=Path, default=Path("build/cifar10-codecs.json"))
    parser.add_argument("--epochs", type=int, default=4, help="of each fine-tuning")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processes", type=int, default=2, help="that compress pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only so many pictures of each set: a trial")
    parser.add_argument("--setting", type=Setting.parse, nargs="+", default=SETTINGS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
