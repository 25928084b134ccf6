"""Exported programs: nothing in them is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest
import torch

from splitrt.cloud.program import load_program, prepare
from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest, Output
from splitrt.errors import ModelError

RAN = []


class Trap:
    """Unpickled, it runs."""

    def __reduce__(self):
        return RAN.append, (1,)


def repacked(source, target, change):
    """A copy of the archive whose members went through change(name, bytes) -> bytes | None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            raw = change(member.filename, old.read(member))
            if raw is not None:
                new.writestr(member.filename, raw)
    return target


def test_a_plain_program_loads(model_dir):
    assert load_program(model_dir / "tail.pt2").module() is not None


def test_a_weight_that_is_a_pickle_is_refused_before_it_runs(model_dir, tmp_path):
    def change(name, raw):
        if name.endswith("weight_0"):
            return pickle.dumps(Trap())
        if name.endswith("model_weights_config.json"):
            table = json.loads(raw)
            first = next(iter(table["config"].values()))
            first["use_pickle"] = True
            return json.dumps(table).encode()
        return raw

    with pytest.raises(ModelError, match="pickle"):
        load_program(repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", change))
    assert not RAN


@pytest.mark.parametrize(
    "member", ["tail/data/constants/opaque_obj_0", "tail/data/constants/custom_obj_0", "evil"]
)
def test_other_members_are_refused(model_dir, tmp_path, member):
    target = repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", lambda _, raw: raw)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(member, pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="pickle"):
        load_program(target)
    assert not RAN


def test_sample_inputs_that_are_not_empty_are_refused(model_dir, tmp_path):
    def change(name, raw):
        return pickle.dumps(Trap()) if "sample_inputs" in name else raw

    with pytest.raises(ModelError, match="pickle"):
        load_program(repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", change))
    assert not RAN


def test_garbage_is_a_model_error(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"no zip")
    with pytest.raises(ModelError):
        load_program(tmp_path / "a.pt2")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "b.pt2").write_bytes(empty.getvalue())
    with pytest.raises(ModelError):
        load_program(tmp_path / "b.pt2")


def in_the_graph(model_dir, tmp_path, change):
    """tail.pt2 whose graph went through change(program)."""

    def edited(name, raw):
        if not name.endswith("models/model.json"):
            return raw
        program = json.loads(raw)
        change(program)
        return json.dumps(program).encode()

    return repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", edited)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('pathlib').Path('{}').touch()",
        "Symbol('s0', positive=True) + open('{}', 'w')",
        "().__class__",
        "Integer(1).evalf",
        "Symbol('s1').__class__",
        "9**9**9**9",
        "1+" * 2000 + "1",
        ["Symbol('s0')"],
    ],
)
def test_an_expression_in_the_graph_is_never_evaluated(model_dir, tmp_path, expression):
    trap = tmp_path / "ran"

    def change(program):
        sizes = program["graph_module"]["graph"]["tensor_values"]["features"]["sizes"]
        mine = expression.format(trap) if isinstance(expression, str) else expression
        sizes[0]["as_expr"]["expr_str"] = mine

    with pytest.raises(ModelError, match="arithmetic"):
        load_program(in_the_graph(model_dir, tmp_path, change))
    assert not trap.exists()


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.from_file.default", "os.system", "torch.load", "_operator.attrgetter", "eval"],
)
def test_only_tensor_operators_are_called(model_dir, tmp_path, target):
    def change(program):
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(ModelError, match="no tensor operator"):
        load_program(in_the_graph(model_dir, tmp_path, change))


def test_guards_are_refused(model_dir, tmp_path):
    def change(program):
        program["guards_code"] = ["print('ran')"]

    with pytest.raises(ModelError, match="guards"):
        load_program(in_the_graph(model_dir, tmp_path, change))


def promising(model_dir, **changes: object) -> Manifest:
    """The manifest with another promise about its one output."""
    manifest = Manifest.load(model_dir)
    output = Output(**(manifest.outputs[0].model_dump() | changes))
    return manifest.model_copy(update={"outputs": [output]})


def test_a_tail_that_gives_something_else_than_promised_does_not_start(model_dir):
    with pytest.raises(ModelError, match=r"tail\.pt2 gives"):
        Tail(model_dir, promising(model_dir, shape=[11]), threads=1)


@pytest.mark.parametrize("kind", ["float32", "float16", "int64"])
def test_outputs_have_the_promised_type(model_dir, kind):
    tail = Tail(model_dir, promising(model_dir, dtype=kind), threads=1)
    (array,) = tail.run(torch.zeros(2, *tail.manifest.cut.shape))
    assert array.dtype == kind and array.shape == (2, 10)


class Convolutions(torch.nn.Module):
    """Plain, strided, grouped, dilated and pointwise ones, some right after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(8, 16, 3, padding=1),
            torch.nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 24, 3, padding=2, dilation=2, groups=2),
            torch.nn.Conv2d(24, 4, 1),
        )
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def exported(sizes: dict[int, torch.export.Dim]) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = Convolutions().eval()
    return torch.export.export(
        model, (torch.zeros(2, 8, 12, 12),), dynamic_shapes={"x": sizes}
    ).module()


def kinds(module: torch.fx.GraphModule) -> list[str]:
    calls = (node for node in module.graph.nodes if node.op == "call_function")
    return [str(node.target) for node in calls]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_ordered_weights_answer_as_the_program_does():
    plain, ordered = (exported({0: torch.export.Dim("batch", min=1, max=64)}) for _ in range(2))
    prepare(ordered, torch.device("cpu"))
    assert "aten.conv2d.default" not in kinds(ordered)
    for count in (1, 2, 16, 33):
        x = torch.randn(count, 8, 12, 12, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(ordered(x), plain(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(ordered(x), ordered(x))


def test_convolutions_of_changing_sizes_stay_as_they_are():
    sizes = {0: torch.export.Dim("batch", max=64), 2: torch.export.Dim("height", min=8, max=64)}
    plain, prepared = exported(sizes), exported(sizes)
    prepare(prepared, torch.device("cpu"))
    assert kinds(prepared).count("aten.conv2d.default") == 4
    x = torch.randn(3, 8, 20, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prepared(x), plain(x))
