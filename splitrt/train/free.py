"""Free sizes: a batch of any number, pictures of changing height and width, and side inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from splitrt.core.sizes import Rule, Sizes, ruled, terms
from splitrt.errors import ModelError

LARGEST_BATCH = 4096
ROWS, COLUMNS = "rows", "columns"  # the picture's height and width in steps
DTYPES = (torch.float32, torch.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Free:
    """What a model takes beside one tensor of one size.

    sizes: its pictures' bounds, or None.  side: examples [batch, …] of further inputs by the
    names that forward() gives them.  picture: the one of them that is the picture's (height,
    width) as it came, which the device can fill in.
    """

    sizes: Sizes | None = None
    side: Mapping[str, torch.Tensor] = field(default_factory=dict)
    picture: str | None = None

    def checked(self, example: torch.Tensor) -> torch.Tensor:
        """The example, at the largest size; ModelError if what was said cannot be."""
        largest = None if self.sizes is None else self.sizes.largest
        if largest is not None and (example.dim() != 4 or tuple(example.shape[2:]) != largest):
            raise ModelError(
                f"the example is {list(example.shape)}, the largest picture {list(largest)}\n"
                "help: give an example [N, C, H, W] that large"
            )
        if self.picture is not None and self.picture not in self.side:
            raise ModelError(f"no side input {self.picture!r}\nhelp: one of {list(self.side)}")
        for name, tensor in self.side.items():
            if tensor.dtype not in DTYPES or tensor.dim() < 1:
                raise ModelError(
                    f"side input {name!r} is {tensor.dtype} {list(tensor.shape)}\n"
                    "help: float32 or int64, and with batch"
                )
        return example

    def sides(self, batch: int) -> dict[str, torch.Tensor]:
        """The examples, as many as the batch has."""
        return {name: _repeated(tensor, batch) for name, tensor in self.side.items()}

    def dims(self) -> tuple[Any, Any, Any]:
        """(batch, height, width) as torch.export wants them; None for a height that is fixed."""
        return batch_dim(), *(self.dim(word, self.step) for word in (ROWS, COLUMNS))

    @property
    def step(self) -> int:
        return 1 if self.sizes is None else self.sizes.step

    def dim(self, word: str, times: int) -> Any:
        """`times` the picture's height (or width) in steps."""
        if self.sizes is None:
            return None
        place = (ROWS, COLUMNS).index(word)
        low, high = (
            bound[place] // self.step for bound in (self.sizes.smallest, self.sizes.largest)
        )
        if low == high:
            return None
        dim = torch.export.Dim(word, min=low, max=high)
        return dim if times == 1 else times * dim

    def shapes(self, module: nn.Module) -> Any:
        """dynamic_shapes of a call module(example, **side)."""
        batch, height, width = self.dims()
        first = {0: batch, 2: height, 3: width} if self.sizes is not None else {0: batch}
        if not self.side:
            return (first,)
        names = list(inspect.signature(module.forward).parameters)
        return {names[0]: first, **{name: {0: batch} for name in self.side}}


def batch_dim() -> Any:
    """The batch as torch.export wants it."""
    return torch.export.Dim("batch", min=1, max=LARGEST_BATCH)


def entry_shapes(free: Free, *, channels_last: bool) -> tuple[Any, ...]:
    """dynamic_shapes of what takes a picture alone: the head."""
    batch, height, width = free.dims()
    if free.sizes is None:
        return ({0: batch},)
    first = 1 if channels_last else 2
    return ({0: batch, first: height, first + 1: width},)


def tail_shapes(free: Free, crossing: Sequence[Rule]) -> tuple[Any, ...]:
    """dynamic_shapes of what takes a tensor that grows by these rules, and side inputs.

    ModelError unless every dimension that grows is a multiple of the picture's height or width.
    """
    batch = batch_dim()
    features = {0: batch}
    for place, rule in enumerate(crossing):
        if isinstance(rule, str):
            constant, by_h, by_w, by_both = terms(rule)
            if constant or by_both or (by_h and by_w):
                raise ModelError(
                    f"what crosses is {rule} long where pictures are h by w\n"
                    "help: cut where maps [C, H, W] cross, or take a larger step"
                )
            features[place + 1] = free.dim(ROWS, by_h) if by_h else free.dim(COLUMNS, by_w)
    return beside(free, (features,))


def beside(free: Free, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dynamic_shapes with those of the side inputs, where forward(x, *side) has any."""
    return (*shapes, tuple({0: batch_dim()} for _ in free.side)) if free.side else shapes


def rules(node: fx.Node, entry: fx.Node) -> list[Rule]:
    """How a tensor's shape (without batch) follows from the picture's; entry: the input."""
    symbols = [_symbol(size) for size in entry.meta["val"].shape[2:4]]
    return [_rule(size, symbols, node) for size in node.meta["val"].shape[1:]]


def crossing_rules(place: Sequence[Rule], inner: Sequence[int], outer: Sequence[int]) -> list[Rule]:
    """The rules of a tensor `inner` that a bottleneck makes of one of shape `outer`.

    ModelError where what crosses would not be a whole multiple of the picture's steps.
    """
    found: list[Rule] = []
    for rule, new, old in zip(place, inner, outer, strict=True):
        if isinstance(rule, int):
            found.append(new)
            continue
        factors = [factor * new for factor in terms(rule)]
        pure = sum(map(bool, factors)) == 1 and not factors[0] and not factors[3]
        if not pure or any(factor % old for factor in factors):
            raise ModelError(
                f"what crosses is {new} long where the cut is {old}, and that grows as {rule}\n"
                "help: a larger step, or cut where height and width are parts of the picture's"
            )
        found.append(ruled(tuple(factor // old for factor in factors)))
    return found


def shrunk(place: Sequence[Rule], inner: Sequence[int], outer: Sequence[int]) -> list[Rule]:
    """The rules of what a bottleneck makes: `inner` of `outer`, where that grows as `place`.

    ModelError where that would be no whole number for every picture.
    """
    found: list[Rule] = []
    for rule, new, old in zip(place, inner, outer, strict=True):
        factors = (new, 0, 0, 0)
        if isinstance(rule, str):
            scaled = [factor * new for factor in terms(rule)]
            if any(factor % old for factor in scaled):
                raise ModelError(
                    f"the bottleneck makes {new} of {old}, which grow as {rule}\n"
                    "help: a larger step, or cut where the maps are larger"
                )
            factors = (scaled[0] // old, scaled[1] // old, scaled[2] // old, scaled[3] // old)
        found.append(ruled(factors))
    return found


def _symbol(size: Any) -> Any:
    return None if isinstance(size, int) else next(iter(size.node.expr.free_symbols))


def _rule(size: Any, symbols: Sequence[Any], node: fx.Node) -> Rule:
    """symbols: what the picture's height and width are in steps; None where one is fixed."""
    if isinstance(size, int):
        return size
    known = [symbol for symbol in symbols if symbol is not None]
    poly = size.node.expr.as_poly(*known) if known else None
    factors = [0, 0, 0, 0]
    for powers, factor in poly.terms() if poly is not None else ():
        by = dict(zip(known, powers, strict=True))
        h, w = (by.get(symbol, 0) for symbol in symbols)
        if max(h, w) > 1 or not factor.is_Integer:
            poly = None
            break
        factors[h + 2 * w] += int(factor)
    if poly is None:
        raise ModelError(
            f"{node.name} is {size} long, which follows from no whole number of steps\n"
            "help: a larger step"
        )
    return ruled((factors[0], factors[1], factors[2], factors[3]))


def _repeated(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor[torch.arange(batch) % len(tensor)]
