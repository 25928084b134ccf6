"""One stream of pictures through the real head, filter, codec, learner and revisions.

As device and server would, but for the wire: no time passes, and the learner does one unit of work
a frame. Labels are looked at only to count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitrt.cloud.learn import Learner, opened
from splitrt.cloud.program import load_program
from splitrt.core.codec import codecs
from splitrt.core.gate import judge, probabilities
from splitrt.core.manifest import Manifest, verified
from splitrt.core.revision import Revision, averaged, corrected, mark
from splitrt.core.scales import scale
from splitrt.core.worth import Stream, weigh
from splitrt.edge.head import session

MODEL = Path(__file__).parents[2] / "models" / "cifar10-resnet"
PLAN, PICTURED = "w32-r125", "w32-jpeg"
TOLD = 16  # uploads, of which one says the stream's mean mark


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Pictures [N, H, W, 3], and after the head: codes [N, C, …], the exit's logits [N, K]."""

    images: np.ndarray
    codes: np.ndarray
    logits: np.ndarray

    def __getitem__(self, rows: slice) -> Seen:
        return Seen(self.images[rows], self.codes[rows], self.logits[rows])

    def __len__(self) -> int:
        return len(self.codes)


class Device:
    """The device's side: answers every frame, says which are worth sending, takes revisions."""

    def __init__(self, manifest: Manifest) -> None:
        plan = manifest.plan(PLAN)
        self.manifest, self.record = manifest, manifest.width(plan).exit
        self.scale, self.codec = scale(MODEL, manifest, plan), codecs(MODEL, manifest)[PLAN]
        self.stream, self.revision = Stream(), None
        self.switching = True
        self.used: list[bool] = []

    def frame(self, codes: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, str]:
        """Codes and the exit's own logits of a frame -> the answer's logits, worth or why not."""
        values = self.scale(codes)
        marked = mark(values)
        mean = self.stream.mean if self.stream.mean.size else marked
        own = self.revision
        use = own is not None and (not self.switching or own.fits(mean))
        self.used.append(use)
        answer = own(logits, values) if use else logits
        shares = probabilities(answer, self.record.temperature)
        why, self.stream = weigh(self.stream, shares, marked)
        return answer, why

    def take(self, body: bytes | None) -> None:
        """A revision as it arrived, or None: drop it."""
        self.revision = None if body is None else Revision.decode(body, self.manifest)


class Bench:
    """The model, opened once for all streams."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.manifest = Manifest.load(MODEL)
        self.width = self.manifest.width(self.manifest.plan(PLAN))
        self.head = session(verified(MODEL, self.manifest, self.width.head), 1, "CPU")
        self.tail = opened(MODEL, self.manifest)
        self.whole = load_program(verified(MODEL, self.manifest, "whole.pt2")).module()

    def seen(self, images: np.ndarray) -> Seen:
        """What the head makes of pictures uint8 [N, H, W, 3]."""
        name = self.manifest.input.name
        parts = [
            self.head.run([self.manifest.plan(PLAN).codec, "exit"], {name: images[place:][:256]})
            for place in range(0, len(images), 256)
        ]
        codes, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Seen(images, codes, logits)

    def run(self, stream: Seen, apart: Seen, clean: Seen, *, seed: int = 0) -> dict[str, object]:
        """Adapt on `stream`; then the frames `apart`, of its kind, and then `clean` ones.

        -> the answers to each, and what crossed. tail, picture: a server's by codes or by JPEG, as
        exported; with _and: as the device blends them with a revision, where one is used.
        """
        device = Device(self.manifest)
        learner = Learner(MODEL, self.manifest, PLAN, tail=self.tail, seed=seed)
        sent, whys, answers = _Sent(), [], []
        for codes, logits in zip(stream.codes, stream.logits, strict=True):
            answer, why = device.frame(codes, logits)
            answers.append(answer)
            whys.append(why)
            if why == "worth":
                sent.sample(device, learner, codes, logits)
            number = 0 if learner.current is None else learner.current.number
            learner.step()
            now = learner.current
            if number != (0 if now is None else now.number):
                body = None if now is None else now.encode()
                sent.down += 0 if body is None else len(body)
                sent.at.append(len(answers))
                device.take(body)
        found = {
            "answers": {"online": np.stack(answers)},
            "tally": learner.tally,
            "whys": whys,
            "up": sent.up,
            "down": sent.down,
            "uploads": sent.count,
            "at": sent.at,
        }
        used = {}
        for name, later in (("apart", apart), ("clean", clean)):
            device.used.clear()
            pairs = zip(later.codes, later.logits, strict=True)
            found["answers"][name] = np.stack([device.frame(*pair)[0] for pair in pairs])
            used[name] = np.array(device.used)
            found[f"used_{name}"] = float(used[name].mean())
        device.switching = False
        pairs = zip(apart.codes, apart.logits, strict=True)
        found["answers"]["forced"] = np.stack([device.frame(*pair)[0] for pair in pairs])
        found["answers"]["teacher"] = self._taught(learner.teacher, apart)
        learner.teacher.reset()
        for name, later, also in (("tail", apart, "apart"), ("clean_tail", clean, "clean")):
            plain = found["answers"][name] = self._taught(learner.teacher, later)
            pairs = zip(plain, later.logits, found["answers"][also], strict=True)
            better = [_both(*three, device.record.temperature) for three in pairs]
            found["answers"][f"{name}_and"] = np.where(used[also][:, None], better, plain)
        plain = found["answers"]["picture"] = self._seen_whole(apart)
        pairs = zip(plain, found["answers"]["apart"], strict=True)
        better = [averaged(*pair, device.record.temperature) for pair in pairs]
        found["answers"]["picture_and"] = np.where(used["apart"][:, None], better, plain)
        return found

    @torch.no_grad()
    def _taught(self, teacher: object, seen: Seen) -> np.ndarray:
        scaled = scale(MODEL, self.manifest, self.manifest.plan(PLAN))
        values = torch.from_numpy(np.stack([scaled(codes) for codes in seen.codes]))
        return torch.cat([teacher(part) for part in values.split(256)]).numpy()

    @torch.no_grad()
    def _seen_whole(self, seen: Seen) -> np.ndarray:
        """The whole model's logits [N, K] of the pictures as JPEGs."""
        codec = codecs(MODEL, self.manifest)[PICTURED]
        opened = [codec.open(codec.encode(image)) for image in seen.images]
        pixels = torch.frombuffer(bytearray(b"".join(opened)), dtype=torch.uint8)
        parts = pixels.view(seen.images.shape).split(256)
        return torch.cat([self.whole(part)[0] for part in parts]).numpy()

    def sure(self, logits: np.ndarray) -> np.ndarray:
        """Which answers the gate would give without asking."""
        return np.array([judge(one, self.width.exit).sure for one in logits])


def _both(
    answer: np.ndarray, shipped: np.ndarray, revised: np.ndarray, temperature: float
) -> np.ndarray:
    """As a device blends a server's answer to codes."""
    better = corrected(answer, shipped, revised, temperature)
    return averaged(better, revised, temperature)


class _Sent:
    """What crossed: uploads, their bytes, those of revisions and the frames at which they came."""

    def __init__(self) -> None:
        self.count = self.up = self.down = 0
        self.at: list[int] = []

    def sample(
        self, device: Device, learner: Learner, codes: np.ndarray, logits: np.ndarray
    ) -> None:
        """Over the wire and into the learner; halves for logits and mean mark."""
        payload = device.codec.encode(codes)
        halves = logits.astype(np.float16)
        level = None
        if self.count % TOLD == 0:
            level = device.stream.level.astype(np.float16)
            self.up += level.nbytes
        self.count += 1
        self.up += len(payload) + halves.nbytes
        learner.add(learner.codec.open(payload), halves.astype(np.float32), level)
