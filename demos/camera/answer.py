"""What a result says, for people: a label, or boxes."""

from __future__ import annotations

import numpy as np

from splitrt import Edge, Frame, PacketError, Result, found

MOST = 50  # boxes that are shown


def answer(edge: Edge, frame: Frame, result: Result) -> dict[str, object]:
    """label, score (0 to 1 or None) and boxes: [left, top, right, bottom in shares, name, score].

    A model that is neither a classifier nor a detector shows the shape of its answer.
    """
    if not result.outputs:
        return {"label": None, "score": None, "boxes": []}
    if edge.manifest.boxes is not None:
        return _boxed(edge, frame, result)
    first = next(iter(result.outputs.values()))
    if first.ndim != 1:
        return {"label": "×".join(map(str, first.shape)), "score": None, "boxes": []}
    best = int(first.argmax())
    likely = np.exp(first.astype(np.float64) - first.max())
    labels = edge.manifest.labels
    return {
        "label": labels[best] if labels else str(best),
        "score": round(float(likely[best] / likely.sum()), 4),
        "boxes": [],
    }


def _boxed(edge: Edge, frame: Frame, result: Result) -> dict[str, object]:
    size = frame.image.shape[:2]
    try:
        boxes = found(edge.manifest, result, size)[:MOST]
    except PacketError as error:
        return {"label": str(error).splitlines()[0], "score": None, "boxes": []}
    names = boxes.names(edge.manifest.labels)
    shares = boxes.normalised(size).xyxy.round(4).tolist()
    rows = [
        [*share, name, round(float(score), 4)]
        for share, name, score in zip(shares, names, boxes.score, strict=True)
    ]
    label = "nothing found" if not rows else f"{len(rows)} found"
    return {"label": label, "score": None, "boxes": rows}
