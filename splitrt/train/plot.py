"""One page for a person: what each plan costs and is worth, the exit, the devices.

Drawn from a Score alone, without a display; .png or .svg.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from splitrt.core.profile import Profile
from splitrt.errors import SplitrtError
from splitrt.train.curve import Mix
from splitrt.train.devices import estimates
from splitrt.train.labels import HAIR, Box, along, place
from splitrt.train.score import BaselineScore, PlanScore, Score

SUFFIXES = (".png", ".svg")
OURS, AUTO, WEBP, JPEG = "#1f5fa8", "#2a8c5a", "#d07a1c", "#a8322d"
INK, DIM, GRID = "#222222", "#8a8f98", "#e4e6ea"
CROWD = 6  # plans from which on their bytes are left to the axis
HEADS = ("#1f5fa8", "#2a8c5a", "#7b4fa3", "#c2557a", "#5f8f9e")
STYLE = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": "#9aa0a8",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#555b63",
    "ytick.color": "#555b63",
    "svg.hashsalt": "splitrt",
}


def check(path: Path) -> None:
    """SplitrtError if a plot cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise SplitrtError(
            f"{path} ends in {path.suffix or 'nothing'}, a plot in {' or '.join(SUFFIXES)}\n"
            f"help: name it {path.with_suffix('.png').name}"
        )
    if not path.parent.is_dir():
        raise SplitrtError(f"{path.parent} is no folder\nhelp: mkdir -p {path.parent}")


def draw(found: Score, path: str | Path) -> None:
    """Write the page of a score to a .png or .svg file."""
    path = Path(path)
    check(path)
    with matplotlib.rc_context(STYLE):
        figure = page(found)
        kind = path.suffix.lower().removeprefix(".")
        undated = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, format=kind, dpi=150, metadata=undated)


def page(found: Score) -> Figure:
    """The page: bytes against accuracy, beside it the exit curve, below it the devices."""
    rows = len(found.heads) + 1
    lower = 1.1 + 0.15 * rows * 8 if found.heads else 0.0
    figure = Figure(figsize=(13.5, 7.3 + lower), facecolor="white")
    high = 7.3 + lower
    top, middle = 1 - 1.6 / high, (lower + 0.75) / high
    wide = 0.655 if found.exit_curve is not None else 0.975
    upper = GridSpec(
        1, 2, figure, left=0.055, right=wide, top=top, bottom=middle,
        width_ratios=(1, 11), wspace=0.03,
    )  # fmt: skip
    figure.suptitle(
        f"{found.model}: what crosses the link, and what it is worth",
        x=0.055, y=1 - 0.3 / high, ha="left", va="top", size=16, weight="bold",
    )  # fmt: skip
    figure.text(0.055, 1 - 0.66 / high, _conditions(found), va="top", color="#555b63")
    plans = figure.add_subplot(upper[1])
    _plans(plans, found)
    silent = figure.add_subplot(upper[0], sharey=plans)
    _silent(silent, found)
    _heading(silent, "Bytes on the wire", "up and left is better")
    if found.exit_curve is not None:
        right = GridSpec(1, 1, figure, left=0.725, right=0.975, top=top, bottom=middle)
        _exit(figure.add_subplot(right[0]), found)
    if found.heads:
        below = GridSpec(
            1, 1, figure, left=0.155, right=0.975, top=(lower - 0.45) / high, bottom=0.55 / high
        )
        _devices(figure.add_subplot(below[0]), found)
    return figure


def _conditions(found: Score) -> str:
    error = 1.96 * math.sqrt(max(found.whole * (1 - found.whole), 0.0) / max(found.frames, 1))
    if not found.labelled:
        return f"{found.frames:,} pictures without labels: right is what the whole model answers"
    return (
        f"{found.frames:,} pictures; the whole model is right on {found.whole:.2%} "
        f"(± {100 * error:.1f} points, 95 %); bytes of whole messages, pictures as whole files"
    )


def _plans(axes: Axes, found: Score) -> None:
    """Bytes on the wire, log, against accuracy: plans, JPEG, WebP, the whole model."""
    cloud = [one for one in found.plans if one.bytes_mean > 0]
    axes.set_xscale("log")
    axes.set_ylim(*_range(found, cloud))
    _whole_line(axes, found)
    curves = _baselines(axes, found.baselines)
    lines = _curves(found.baselines)
    front = sorted((one for one in cloud if not one.dominated), key=_smallest)
    line = _staircase([one for one in front if one.name != "auto"])
    axes.plot(*zip(*line, strict=True), color=OURS, lw=1.8, zorder=3) if line else None
    for one in cloud:
        _marker(axes, one)
    _bytes_axis(axes, [one.bytes_mean for one in (*cloud, *found.baselines)])
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    level = [(size, found.whole) for size in axes.get_xlim()]
    _name(axes, cloud, curves, [line, level, *lines])
    _legend(axes, found)


def _range(found: Score, cloud: list[PlanScore]) -> tuple[float, float]:
    """Accuracies to show: all cloud plans, and about as far below; what is lower is clipped."""
    seen = [found.whole, *(one.accuracy for one in cloud)]
    files = [line.accuracy for line in found.baselines]
    span = max(0.05, max(seen) - min(seen))
    low = min([*seen, *(value for value in files if value > min(seen) - 2 * span)])
    top = max([*seen, *files])
    span = max(0.05, top - low)
    return low - 0.12 * span, min(top + 0.2 * span, 1 + 0.06 * span)


def _whole_line(axes: Axes, found: Score) -> None:
    axes.axhline(found.whole, color=INK, lw=1.1, ls=(0, (6, 3)), zorder=2)


def _baselines(axes: Axes, lines: list[BaselineScore]) -> list[tuple[float, float, str, str]]:
    """Draw the codecs' curves; returns their points: bytes, accuracy, colour, quality."""
    points = []
    for codec, colour in (("webp", WEBP), ("jpeg", JPEG)):
        mine = [line for line in lines if line.codec == codec]
        points += [(one.bytes_mean, one.accuracy, colour, str(one.quality)) for one in mine]
        sizes, right = [one.bytes_mean for one in mine], [one.accuracy for one in mine]
        axes.plot(sizes, right, "o-", color=colour, ms=4, lw=1.2, zorder=2.5)
        scans = [one.scan_bytes_mean for one in mine if one.scan_bytes_mean]
        if len(scans) == len(mine):
            axes.plot(scans, right, "o:", color=colour, ms=3, lw=1.2, mfc="white", zorder=2.4)
    return points


def _smallest(one: PlanScore) -> tuple[float, float]:
    return one.bytes_mean, -one.accuracy


def _staircase(front: list[PlanScore]) -> list[tuple[float, float]]:
    """The front in bytes and accuracy alone: from the smallest, each better than all before."""
    best, line = -1.0, []
    for one in front:
        if one.accuracy > best:
            line.append((one.bytes_mean, one.accuracy))
            best = one.accuracy
    return line


def _marker(axes: Axes, one: PlanScore) -> None:
    shape, size, colour = ("D", 7.5, AUTO) if one.name == "auto" else ("o", 9.0, OURS)
    if one.dominated:
        look = {"mfc": "white", "mec": DIM, "ms": 6.5, "mew": 1.3}
    else:
        look = {"mfc": colour, "mec": "white", "ms": size, "mew": 1.2}
    axes.plot(one.bytes_mean, one.accuracy, shape, zorder=4, **look)


def _bytes_axis(axes: Axes, sizes: list[float]) -> None:
    if sizes:
        axes.set_xlim(min(sizes) / 1.45, max(sizes) * 1.45)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", bottom=False)
    axes.set_xlabel("bytes a picture, mean (log)")


def _name(
    axes: Axes,
    cloud: list[PlanScore],
    curves: list[tuple[float, float, str, str]],
    lines: list[list[tuple[float, float]]],
) -> None:
    """Names at the plans, qualities at the codecs' points; none on another."""
    plans = sorted(cloud, key=lambda one: (one.dominated, one.bytes_mean))
    crowded = sum(not one.dominated for one in plans) > CROWD
    words = [
        (
            one.bytes_mean,
            one.accuracy,
            _words(one, crowded),
            _colour(one),
            8.5 if one.dominated else 10,
        )
        for one in plans
    ]
    words += [(x, y, quality, colour, 7.5) for x, y, colour, quality in curves]
    drawn = [*((one.bytes_mean, one.accuracy) for one in cloud), *((x, y) for x, y, *_ in curves)]
    _write(axes, words, drawn, lines)


def _words(one: PlanScore, crowded: bool) -> str:
    if one.dominated:
        return one.name
    if crowded:
        return f"{one.name}  {one.accuracy:.1%}"
    return f"{one.name}  {one.accuracy:.1%} · {one.bytes_mean:,.0f} B"


def _colour(one: PlanScore) -> str:
    if one.dominated:
        return DIM
    return AUTO if one.name == "auto" else OURS


def _curves(baselines: list[BaselineScore]) -> list[list[tuple[float, float]]]:
    """The codecs' lines, a JPEG's scan alone among them, as points."""
    lines = []
    for codec in ("webp", "jpeg"):
        mine = [one for one in baselines if one.codec == codec]
        lines.append([(one.bytes_mean, one.accuracy) for one in mine])
        lines.append([(one.scan_bytes_mean, one.accuracy) for one in mine if one.scan_bytes_mean])
    return lines


def _write(
    axes: Axes,
    words: list[tuple[float, float, str, str, float]],
    drawn: list[tuple[float, float]],
    lines: list[list[tuple[float, float]]],
) -> None:
    """Put each (x, y, text, colour, size) beside its point, with a hair line where it is far."""
    figure = axes.figure
    figure.canvas.draw()
    pixels = axes.transData.transform
    frame = axes.get_window_extent()
    inside = Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)
    taken = [Box.around(*pixels(point), 11, 11) for point in drawn]
    for line in lines:
        taken += along([tuple(pixels(point)) for point in line])
    words = [one for one in words if frame.contains(*pixels(one[:2]))]
    anchors = [tuple(pixels(one[:2])) for one in words]
    sizes = [_extent(axes, text, size) for _, _, text, _, size in words]
    for one, anchor, box in zip(
        words, anchors, place(anchors, sizes, taken=taken, inside=inside), strict=True
    ):
        if box is not None:
            _label(axes, one, anchor, box)


def _label(
    axes: Axes,
    one: tuple[float, float, str, str, float],
    anchor: tuple[float, float],
    box: Box,
) -> None:
    x, y, text, colour, size = one
    middle = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    scale = 72 / axes.figure.dpi  # the same on paper of any resolution
    offset = tuple(scale * (there - here) for there, here in zip(middle, anchor, strict=True))
    far = box.distance(anchor) > HAIR
    hair = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkB": 4} if far else None
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", color=colour, size=size,
        ha="center", va="center", arrowprops=hair, zorder=5,
    )  # fmt: skip


def _extent(axes: Axes, text: str, size: float) -> tuple[float, float]:
    """Width and height of a text in pixels, with a little air."""
    probe = axes.text(0, 0, text, size=size, ha="left", va="bottom")
    box = probe.get_window_extent()
    probe.remove()
    return box.width + 5, box.height + 3


def _legend(axes: Axes, found: Score) -> None:
    """What the marks mean, above the axes, where nothing is drawn."""
    marks: list[tuple[str, dict[str, object]]] = [
        ("plan that no other beats", {"marker": "o", "color": OURS, "mec": "white", "ms": 9}),
        ("dominated plan", {"marker": "o", "color": "none", "mec": DIM, "ms": 6.5}),
        (f"whole model, {found.whole:.1%}", {"color": INK, "ls": (0, (6, 3)), "lw": 1.1}),
    ]
    if found.baselines:
        marks += [
            ("WebP by quality", {"marker": "o", "color": WEBP, "ms": 4, "lw": 1.2}),
            ("JPEG by quality", {"marker": "o", "color": JPEG, "ms": 4, "lw": 1.2}),
            (
                "JPEG, its scan alone",
                {"marker": "o", "color": JPEG, "ms": 3, "ls": ":", "mfc": "white"},
            ),
        ]
    for text, look in marks:
        axes.plot([], [], **{"ls": "-" if "lw" in look else "none", **look}, label=text)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.005), ncols=3, frameon=False, fontsize=8.5
    )


def _silent(axes: Axes, found: Score) -> None:
    """The plans that send nothing, on the same accuracies; below the range they are at its foot."""
    low, high = axes.get_ylim()
    _whole_line(axes, found)
    axes.set_xlim(-1, 1)
    axes.set_xticks([0], ["0"])
    axes.set_xlabel("alone")
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(low, high)))
    axes.set_ylabel(_kind(found))
    words = []
    for one in (one for one in found.plans if one.bytes_mean == 0):
        under = one.accuracy < low
        y = low + 0.1 * (high - low) if under else one.accuracy
        axes.plot(0, y, "v" if under else "s", color=AUTO, ms=8, mec="white", zorder=4)
        words.append((0.0, y, f"{one.name}\n{one.accuracy:.1%}", AUTO, 9.0))
    level = [(-1.0, found.whole), (1.0, found.whole)]
    _write(axes, words, [(x, y) for x, y, *_ in words], [level])


def _decimals(low: float, high: float) -> int:
    return 1 if high - low < 0.04 else 0


def _kind(found: Score) -> str:
    return "accuracy" if found.labelled else "agreement with the whole model"


def _exit(axes: Axes, found: Score) -> None:
    """Share answered by the exit against the accuracy of the mix."""
    known = found.exit_curve
    assert known is not None  # page() saw to it
    shares = [mix.share for mix in known.curve]
    right = [mix.accuracy for mix in known.curve]
    axes.plot(shares, right, color=AUTO, lw=2, zorder=3)
    axes.axhline(found.whole, color=INK, lw=1.1, ls=(0, (6, 3)))
    axes.axhspan(found.whole - 0.01, found.whole, color=INK, alpha=0.07, lw=0)
    top = max([*right, found.whole])
    span = max(0.02, top - min(right))
    axes.set_ylim(min(right) - 0.08 * span, top + 0.24 * span)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_decimals(*axes.get_ylim())))
    axes.set_xlabel("pictures answered on the device, the surest first")
    axes.set_ylabel(f"{_kind(found)} of the mix")
    _heading(axes, "The exit", f"the others go as {known.plan}; grey: one point below the whole")
    marked = [mix for mix in found.mixes if mix is not known.within]
    axes.plot([m.share for m in marked], [m.accuracy for m in marked], "o", color=AUTO, ms=6,
              mec="white", zorder=4)  # fmt: skip
    words = [(m.share, m.accuracy, _mix(m), AUTO, 8.5) for m in marked]
    if known.within is not None:
        at = known.within
        axes.plot(at.share, at.accuracy, "*", color=INK, ms=13, mec="white", zorder=5)
        words.append((at.share, at.accuracy, f"{_mix(at)}\nstill within 1 point", INK, 8.5))
    else:
        told = known.lost.replace(": ", ":\n")
        axes.annotate(told, (0.04, 0.04), xycoords="axes fraction", size=8.5)
    words.sort(key=lambda one: one[0])
    drawn = [(mix.share, mix.accuracy) for mix in found.mixes]
    level = [(0.0, found.whole), (1.0, found.whole)]
    _write(axes, words, drawn, [list(zip(shares, right, strict=True)), level])


def _mix(mix: Mix) -> str:
    return f"{mix.share:.0%} → {mix.accuracy:.1%} · {mix.bytes_mean:,.0f} B"


def _devices(axes: Axes, found: Score) -> None:
    """Estimated milliseconds of each head, and of the whole model, on every profile."""
    one = len(found.heads) == 1
    rows = [
        ("head" if one else f"head of {_few(head.plans)}", head.macs, head.devices)
        for head in found.heads
    ]
    if found.whole_macs:
        rows.append(("whole model", found.whole_macs, estimates(found.whole_macs)))
    devices = list(rows[0][2])
    thick = 0.8 / len(rows)
    for turn, (name, macs, times) in enumerate(rows):
        colour = DIM if name == "whole model" else HEADS[turn % len(HEADS)]
        for line, device in enumerate(devices):
            y, time = line - 0.4 + thick * (turn + 0.5), times[device]
            axes.barh(y, time.high_ms - time.low_ms, 0.72 * thick, time.low_ms, color=colour)
            axes.annotate(f"{time} ms", (time.high_ms, y), (5, 0), textcoords="offset points",
                          va="center", size=8.5, color=colour)  # fmt: skip
        axes.barh(0, 0, color=colour, label=f"{name}: {macs / 1e6:,.1f} MMAC")
    for line in range(0, len(devices), 2):
        axes.axhspan(line - 0.5, line + 0.5, color="#f5f6f8", lw=0, zorder=0)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    times = [time for _, _, each in rows for time in each.values()]
    axes.set_xlim(min(t.low_ms for t in times) / 1.3, max(t.high_ms for t in times) * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
    axes.tick_params(which="minor", bottom=False)
    axes.set_yticks(range(len(devices)), [Profile.load(device).name for device in devices])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(devices) - 0.5, -0.5)
    axes.set_xlabel("milliseconds (log), all cores of the CPU")
    axes.legend(loc="lower right", frameon=True, edgecolor=GRID, fontsize=8.5)
    _heading(
        axes,
        "The head on devices: estimated, nothing was measured",
        "from MACs, between published speeds of MobileNetV2 (right end) and ResNet-50 (left)",
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _heading(axes: Axes, title: str, below: str) -> None:
    axes.annotate(title, (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points",
                  size=12, weight="bold", va="bottom")  # fmt: skip
    axes.annotate(below, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points",
                  size=8.5, color="#555b63", va="bottom")  # fmt: skip
