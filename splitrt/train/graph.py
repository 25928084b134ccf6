"""The model as a flat graph: where it may be parted, and the parts."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from splitrt.core.sizes import Rule
from splitrt.errors import ModelError
from splitrt.train.extract import SHAPE_READS, extract
from splitrt.train.free import Free, rules

HELP = "check --shape, and --side for further inputs; forward() must not branch on its values"
HELP_SIZES = "check --side, take a larger --step; forward() must not branch on a picture's size"


@dataclass(frozen=True, slots=True)
class Cut:
    """One legal place: the only tensor that crosses there, and what lies before it."""

    name: str
    shape: tuple[int, ...]  # without batch
    dtype: str
    bytes: int  # crossing, per sample
    head_macs: int
    head_params: int
    node: str = field(repr=False)


def trace(module: nn.Module, example: torch.Tensor, free: Free = Free()) -> Graph:
    """The graph of `module`, called with one tensor [batch, …]; the batch stays free.

    `free` says whether height and width do too, and what side inputs there are.

    ModelError if the module is in train mode, writes its own state or cannot be exported.
    """
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(f"{training[0]} is in train mode\nhelp: call model.eval() first")
    if len(example) < 2:
        example = torch.cat([example, example])  # a batch of 1 would be taken for a constant
    example = free.checked(example)
    side = free.sides(len(example))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about itself
            outputs = module(example, **side)
            program = torch.export.export(
                module, (example,), side, dynamic_shapes=free.shapes(module), strict=False
            ).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the model's code provokes
        raise ModelError(
            f"{type(module).__name__} cannot be exported for {list(example.shape)}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            f"help: {HELP if free.sizes is None else HELP_SIZES}"
        ) from error
    signature = program.graph_signature
    written = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    if written:
        raise ModelError(
            f"forward() writes {', '.join(written.values())}\n"
            "help: a cut model keeps no state between calls"
        )
    flat = program.module(check_guards=False)
    flat.graph.eliminate_dead_code()
    flat.recompile()
    graph = Graph(flat, example, _names(outputs), free)
    if free.sizes is not None:
        graph.output_rules()  # where these cannot be told, nothing can be cut
    return graph


class Graph:
    """A functional graph of one input with free batch, the legal cuts in it, and its parts.

    Side inputs are taken by the tail alone, and by the whole model.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example: torch.Tensor,
        output_names: tuple[str, ...],
        free: Free = Free(),
    ) -> None:
        self.module, self.example, self.output_names = module, example, output_names
        self.nodes = list(module.graph.nodes)
        self.free = free
        self.input, *self.sides = [node for node in self.nodes if node.op == "placeholder"]
        self.end = next(node for node in self.nodes if node.op == "output")
        self.data = self._data()

    @cached_property
    def cuts(self) -> list[Cut]:
        """Every legal cut, from the input to the outputs."""
        taken: dict[str, int] = {}
        return [self._cut(node, taken) for node in self._dominators()]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the whole model, per sample."""
        return sum(self._macs.values())

    @cached_property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """The outputs' shapes, without batch."""
        return [_sample_shape(node) for node in self._outputs()]

    @property
    def output_dtypes(self) -> list[torch.dtype]:
        """The outputs' types."""
        return [node.meta["val"].dtype for node in self._outputs()]

    @property
    def side_names(self) -> list[str]:
        """The side inputs, in the order in which the tail takes them."""
        return [str(node.target) for node in self.sides]

    def side_examples(self, batch: int) -> list[torch.Tensor]:
        """An example [batch, …] of each side input."""
        examples = self.free.sides(batch)
        return [examples[name] for name in self.side_names]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the graph's operators, shapes and module paths; weights do not count."""
        digest = hashlib.sha256()
        for node in self.nodes:
            path = "" if node.op == "placeholder" else ".".join(_path(node)[-1:])
            shape = _sample_shape(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()
            arguments = [self.nodes.index(used) for used in node.all_input_nodes]
            digest.update(f"{node.op} {_operator(node)} {path} {shape} {arguments}\n".encode())
        return digest.hexdigest()

    def rules(self, cut: Cut) -> list[Rule]:
        """How the shape of what crosses follows from the picture's."""
        return rules(self._node(cut), self.input)

    def output_rules(self) -> list[list[Rule]]:
        """How the outputs' shapes follow from the picture's; ModelError if in no simple way."""
        return [rules(node, self.input) for node in self._outputs()]

    def find(self, after: str) -> Cut:
        """The cut at a name of `cuts`, or at the end of the module of that path.

        ModelError names the nearest legal places, if that one is not legal.
        """
        by_name = {cut.name: cut for cut in self.cuts}
        if after in by_name:
            return by_name[after]
        last = self._ends.get(after)
        if last is None:
            known = {*by_name, *self._ends}
            near = difflib.get_close_matches(after, known, 3, 0.4) or list(by_name)[:3]
            raise ModelError(f"no module {after!r}\nhelp: did you mean {_or(near)}?")
        for cut in self.cuts:
            if cut.node == last.name:
                return cut
        raise ModelError(self._refusal(after, last))

    def part(self, cut: Cut) -> tuple[fx.GraphModule, fx.GraphModule]:
        """(head, tail), which share the model's weights; the tail returns a tuple of tensors."""
        place = self._node(cut)
        return extract(self.module, [self.input], [place], single=True), extract(
            self.module, [place, *self.sides], self._outputs()
        )

    def taps(self, cut: Cut, count: int = 3) -> list[Cut]:
        """Up to `count` cuts behind `cut`, evenly over the operations that are left."""
        behind = [other for other in self.cuts if other.head_macs > cut.head_macs]
        behind = [other for other in behind if other.node != self._outputs()[0].name]
        left = self.macs - cut.head_macs
        wanted = [cut.head_macs + left * (i + 1) / (count + 1) for i in range(count)]
        behind.reverse()  # of cuts with equal operations the last
        nearest = [min(behind, key=lambda c: abs(c.head_macs - w)) for w in wanted if behind]
        return list(dict.fromkeys(nearest))

    def part_with_taps(self, cut: Cut, taps: Sequence[Cut]) -> fx.GraphModule:
        """The tail, returning (*taps, *outputs)."""
        results = [*map(self._node, taps), *self._outputs()]
        return extract(self.module, [self._node(cut), *self.sides], results)

    def whole(self) -> fx.GraphModule:
        """The model itself, returning a tuple of tensors."""
        return extract(self.module, [self.input, *self.sides], self._outputs())

    def tap_whole(self, cut: Cut, taps: Sequence[Cut]) -> fx.GraphModule:
        """The whole model, returning (what crosses, *taps, *outputs)."""
        results = [self._node(cut), *map(self._node, taps), *self._outputs()]
        return extract(self.module, [self.input, *self.sides], results)

    def _data(self) -> set[fx.Node]:
        """Nodes whose value depends on the input's values; the rest is computed on both sides."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            depends = any(used in found for used in node.all_input_nodes)
            if node is self.input or (depends and node.target not in SHAPE_READS):
                found.add(node)
        return found

    def _dominators(self) -> list[fx.Node]:
        """Floating-point tensors on every path: paths in × paths out = all paths."""
        order = [node for node in self.nodes if node in self.data]
        into = {self.input: 1}
        for node in order[1:]:
            into[node] = sum(into[used] for used in node.all_input_nodes if used in self.data)
        out = {self.end: 1}
        for node in reversed(order[:-1]):
            out[node] = sum(out[user] for user in node.users if user in self.data)
        return [
            node
            for node in order
            if node.op == "call_function"
            and into[node] * out[node] == into[self.end]
            and self._may_cross(node)
        ]

    def _may_cross(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return False
        if node in self._outputs():
            return False
        try:
            extract(self.module, [node, *self.sides], self._outputs())
            if self.sides:
                extract(self.module, [self.input], [node])
        except ModelError:
            return False
        return value.dim() > 0 and not isinstance(value.shape[0], int)

    def _cut(self, node: fx.Node, taken: dict[str, int]) -> Cut:
        shape = _sample_shape(node)
        before = self._before(node)
        weights = {
            used.target for one in before for used in one.all_input_nodes if used.op == "get_attr"
        }
        value = node.meta["val"]
        count = int(torch.Size(shape).numel())
        return Cut(
            name=self._name(node, taken),
            shape=shape,
            dtype=str(value.dtype).removeprefix("torch."),
            bytes=count * value.element_size(),
            head_macs=sum(self._macs.get(one, 0) for one in before),
            head_params=sum(_attribute(self.module, str(name)).numel() for name in weights),
            node=node.name,
        )

    def _before(self, node: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        left = [node]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += one.all_input_nodes
        return found

    def _name(self, node: fx.Node, taken: dict[str, int]) -> str:
        """The shortest module that ends here, else where we are in which module."""
        ended = [path for path, last in self._ends.items() if last is node]
        inside = _path(node)
        name = min(ended, key=len) if ended else ".".join([*inside[-1:], _operator(node)])
        taken[name] = taken.get(name, 0) + 1
        return name if taken[name] == 1 else f"{name}#{taken[name]}"

    @cached_property
    def _ends(self) -> dict[str, fx.Node]:
        """The last data node of each module, by the module's path."""
        ends: dict[str, fx.Node] = {}
        for node in self.nodes:
            if node in self.data and node.op == "call_function":
                ends |= dict.fromkeys(_path(node), node)
        return ends

    @cached_property
    def _macs(self) -> dict[fx.Node, int]:
        counter = _Counter(self.module)
        with torch.no_grad():
            inputs = (self.example, *self.side_examples(len(self.example)))
            counter.run(*inputs, enable_io_processing=False)
        return {node: macs // len(self.example) for node, macs in counter.macs.items()}

    def _refusal(self, after: str, last: fx.Node) -> str:
        position = {node.name: place for place, node in enumerate(self.nodes)}
        here = position[last.name]
        crossing = {
            node
            for node in self.nodes[: here + 1]
            if node in self.data and any(position[user.name] > here for user in node.users)
        }
        before = [cut.name for cut in self.cuts if position[cut.node] < here][-1:]
        behind = [cut.name for cut in self.cuts if position[cut.node] > here][:1]
        near = [f"{name!r} (before)" for name in before] + [f"{name!r} (after)" for name in behind]
        if last in self._outputs():
            return f"{after!r} is the end of the model\nhelp: the nearest legal place is {near[0]}"
        found = f"after {after!r} {len(crossing)} tensors cross, and one may"
        if len(crossing) == 1:
            found = f"what crosses after {after!r} does not let the tail know its batch"
        return f"{found}\nhelp: the nearest legal places are {' and '.join(near) or 'none'}"

    def _node(self, cut: Cut) -> fx.Node:
        for node in self.nodes:
            if node.name == cut.node:
                return node
        raise ModelError(f"{cut.name!r} is a cut of another model\nhelp: use find() of this one")

    def _outputs(self) -> list[fx.Node]:
        leaves = pytree.tree_leaves(self.end.args[0])
        return [leaf for leaf in leaves if isinstance(leaf, fx.Node)]


class _Counter(fx.Interpreter):
    """Runs the graph once and notes the multiply-accumulates of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return result


def _sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Without batch; at the largest picture's size where that is free."""
    shape = node.meta["val"].shape[1:]
    return tuple(size if isinstance(size, int) else size.node.hint for size in shape)


def _path(node: fx.Node) -> list[str]:
    """The modules around a node, outermost first, without the model itself."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    paths = [str(path).removeprefix("L['self']").lstrip(".") for path, _ in stack]
    return [path for path in paths if path]


def _operator(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0]


def _attribute(module: nn.Module, path: str) -> torch.Tensor:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _names(outputs: Any) -> tuple[str, ...]:
    """Names of the outputs, from their keys where they have any."""
    if isinstance(outputs, torch.Tensor):
        return ("logits",) if outputs.dim() == 2 else ("output",)
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    named = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    return tuple(_joined(path) for path, _ in named)


def _joined(path: Sequence[Any]) -> str:
    words = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    ]
    return "output" + ".".join(words) if words[0].isdigit() else ".".join(words)


def _or(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
