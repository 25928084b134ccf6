"""Pictures of changing size: which are allowed, and how every other shape follows from theirs.

A model directory's shapes are those of the largest picture, so whoever takes memory by them takes
enough. What crosses and the outputs of a smaller one follow by a dimension's rule: `8h` is eight
times the picture's height in steps, `63hw` sixty-three times height times width. The shape of
everything is thus known, and checked, before memory is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitrt.errors import ModelError, PacketError

Rule: TypeAlias = int | str  # a constant, or a sum of terms such as 4h, 16hw, -1
TERM = re.compile(r"([+-]?)(\d{0,9})(h?w?)")
WORDS = ("", "h", "w", "hw")
LONGEST_RULE = 60  # characters
LARGEST_SIDE = 1 << 16  # pixels

Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


@dataclass(frozen=True, slots=True)
class Placing:
    """Where a picture lies in what the model sees: all (height, width), from the top left.

    came: of the picture.  inner: of it there.  outer: of all, with the grey around it.
    """

    came: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]


class Sizes(BaseModel):
    """The pictures that a model takes: (height, width) between two bounds, multiples of `step`.

    fit says what the device makes of any other. exact: an error. letterbox: scaled down, its
    sides' ratio kept, if it is too large; then padded with grey 114 below and to the right.
    stretch: resized to the nearest allowed size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    smallest: tuple[Pixels, Pixels]
    largest: tuple[Pixels, Pixels]
    step: Annotated[int, Field(ge=1, le=4096)] = 32
    fit: Literal["exact", "letterbox", "stretch"] = "exact"

    @model_validator(mode="after")
    def _in_order(self) -> Sizes:
        for low, high in zip(self.smallest, self.largest, strict=True):
            if low % self.step or high % self.step:
                raise ValueError(f"the bounds should be multiples of the step, {self.step}")
            if low > high:
                raise ValueError(f"smallest {low} is more than largest {high}")
        return self

    @classmethod
    def between(
        cls,
        smallest: tuple[int, ...],
        largest: tuple[int, ...],
        *,
        step: int = 32,
        fit: str = "exact",
    ) -> Sizes:
        """The sizes between two (height, width); ModelError if they make no sense."""
        try:
            return cls.model_validate(
                {"smallest": smallest, "largest": largest, "step": step, "fit": fit}
            )
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"])) or "they"
            words = found["msg"].removeprefix("Value error, ")
            raise ModelError(
                f"sizes {smallest} to {largest}: {place}: {words}\n"
                "help: height and width, multiples of step; fit exact, letterbox or stretch"
            ) from error

    def check(self, size: tuple[int, int]) -> None:
        """PacketError unless pictures of that height and width are allowed."""
        for pixels, low, high in zip(size, self.smallest, self.largest, strict=True):
            if not low <= pixels <= high:
                raise PacketError(
                    f"a picture of {size[0]}×{size[1]}, from {_by(self.smallest)} to "
                    f"{_by(self.largest)} is wanted"
                )
            if pixels % self.step:
                raise PacketError(f"a picture of {size[0]}×{size[1]}, no multiple of {self.step}")

    def nearest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The allowed size nearest to that one."""
        height, width = (
            min(max(self.step * max(1, round(pixels / self.step)), low), high)
            for pixels, low, high in zip(size, self.smallest, self.largest, strict=True)
        )
        return height, width

    def placing(self, size: tuple[int, int]) -> Placing:
        """What `fit` makes of a picture of (height, width); PacketError where that is nothing."""
        if 0 in size:
            raise PacketError(f"a picture of {_by(size)}")
        near = self.nearest(size)
        if self.fit == "letterbox":
            return self._letterbox(size)
        if self.fit == "stretch":
            return Placing(size, near, near)
        try:
            self.check(size)
        except PacketError as error:
            raise PacketError(f"{error}\nhelp: the nearest allowed is {_by(near)}") from error
        return Placing(size, size, size)

    def _letterbox(self, size: tuple[int, int]) -> Placing:
        scale = min(1.0, *(most / side for side, most in zip(size, self.largest, strict=True)))
        height, width = (max(1, round(scale * side)) for side in size)
        low = zip((height, width), self.smallest, strict=True)
        rows, columns = (max(least, -(-n // self.step) * self.step) for n, least in low)
        return Placing(size, (height, width), (rows, columns))


class Growth(Sizes):
    """What model.toml says of them: also how the shapes grow (h, w: the picture's in steps)."""

    crossing: list[Rule]
    outputs: list[list[Rule]]

    @model_validator(mode="after")
    def _stays_within(self) -> Growth:
        """Rules are linear in h and in w: their extremes lie at the corners."""
        top = self.shapes(self.largest)
        for height in (self.smallest[0], self.largest[0]):
            for width in (self.smallest[1], self.largest[1]):
                for shape, limit in zip(self.shapes((height, width)), top, strict=True):
                    if any(not 1 <= n <= most for n, most in zip(shape, limit, strict=True)):
                        raise ValueError(f"shape {shape} at {height}×{width}, {limit} at most")
        return self

    def shapes(self, size: tuple[int, int]) -> list[list[int]]:
        """The shape of what crosses and of each output, for pictures of that size."""
        h, w = (pixels // self.step for pixels in size)
        return [[value(rule, h, w) for rule in rules] for rules in (self.crossing, *self.outputs)]


def value(rule: Rule, h: int, w: int) -> int:
    """The dimension that a rule gives."""
    if isinstance(rule, int):
        return rule
    constant, by_h, by_w, by_both = terms(rule)
    return constant + by_h * h + by_w * w + by_both * h * w


@lru_cache(maxsize=1024)
def terms(rule: str) -> tuple[int, int, int, int]:
    """(constant, factor of h, of w, of h·w) of a rule; ValueError if it is none."""
    parts = re.findall(r"[+-]?[^+-]+", rule) if len(rule) <= LONGEST_RULE else []
    if not parts or "".join(parts) != rule:
        raise ValueError(f"{rule[:LONGEST_RULE]!r} is no rule; wanted is a sum such as 4h or 63hw")
    found = dict.fromkeys(WORDS, 0)
    for part in parts:
        match = TERM.fullmatch(part)
        if match is None or not (match[2] or match[3]):
            raise ValueError(f"{part!r} in {rule!r} is no term; wanted is one such as 4h or 63hw")
        found[match[3]] += int(f"{match[1]}{match[2] or 1}")
    return found[""], found["h"], found["w"], found["hw"]


def ruled(factors: tuple[int, int, int, int]) -> Rule:
    """The rule of those factors; a plain number where nothing grows."""
    if not any(factors[1:]):
        return factors[0]
    parts = [f"{n:+d}{word}" for n, word in zip(factors, WORDS, strict=True) if n]
    words = "".join(parts[::-1]).removeprefix("+")
    return re.sub(r"(?<!\d)1(?=[hw])", "", words)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
