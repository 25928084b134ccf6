"""Who may import whom; and that the device never sees torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {
    "errors": set(),
    "wire": {"wire"},
    "core": {"errors", "wire", "core"},
    "edge": {"errors", "wire", "core", "edge"},
    "star": {"errors", "wire", "core", "edge", "star"},
    "daemon": {"errors", "wire", "core", "edge", "daemon"},
    "cloud": {"errors", "wire", "core", "cloud"},
    "fleet": {"errors", "wire", "core", "cloud", "fleet"},
    "train": {"errors", "core", "train"},
}
OTHERS = {
    "core": {"PIL", "google", "numpy", "zstandard", "pydantic", "safetensors", "tomli"},
    "edge": {"numpy", "onnxruntime", "grpc", "PIL", "cv2", "picamera2"},
    "star": {"numpy", "onnxruntime", "grpc"},
    "daemon": {"numpy", "grpc", "pydantic", "tomli"},
    "cloud": {
        "numpy", "torch", "grpc", "grpc_health", "grpc_reflection", "google", "prometheus_client",
        "safetensors",
    },
    "fleet": {"grpc", "google"},
    "train": {
        "numpy", "torch", "onnx", "PIL", "matplotlib", "pydantic", "rich", "safetensors", "tomli_w",
        "tokenizers", "zstandard",
    },
}  # fmt: skip
# What needs the extras `chat`, `frigate`, `daemon`, `trace` and `ray` is kept to its own files.
EXTRA = {
    "core/spans.py": {"opentelemetry"},
    "daemon/meters.py": {"prometheus_client"},
    "edge/api.py": {"starlette", "uvicorn"},
    "edge/frigate.py": {"zmq"},
    "edge/template.py": {"jinja2"},
    "edge/tokens.py": {"tokenizers"},
    "edge/trace.py": {"opentelemetry"},
    "edge/wish.py": {"pydantic"},
    "fleet/book.py": {"ray"},
    "fleet/fleet.py": {"ray"},
    "fleet/replica.py": {"grpc_health", "ray"},
}
# The wire is public too: protos/ says what any client may send; `served` starts the demos' server.
PUBLIC = (
    "splitrt", "splitrt.train", "splitrt.cloud", "splitrt.relay", "splitrt.star", "splitrt.wire",
    "splitrt.served",
)  # fmt: skip
# Two files run more than their layer: the score measures both halves over the real wire, and exits
# of a language model learn what both halves really say.
ALSO = {"train/score.py": {"edge", "cloud"}, "train/early.py": {"edge", "cloud"}}


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("layer", OTHERS)
def test_a_layer_imports_what_it_may(layer):
    for path in (ROOT / "splitrt" / layer).glob("*.py"):
        also = ALSO.get(f"{layer}/{path.name}", set())
        for name in imports(path):
            first, *rest = name.split(".")
            if first == "splitrt":
                assert rest and rest[0] in OURS[layer] | also, f"{path.name} imports {name}"
            elif first not in sys.stdlib_module_names:
                extra = EXTRA.get(f"{layer}/{path.name}", set())
                assert first in OTHERS[layer] | extra, f"{path.name} imports {name}"


def test_the_relay_runs_on_a_device_and_knows_neither_half():
    for name in imports(ROOT / "splitrt" / "relay.py"):
        first = name.split(".")[0]
        ours = first == "splitrt" and name.split(".")[1] in ("core", "errors")
        assert ours or first == "numpy" or first in sys.stdlib_module_names, name


def test_benchmarks_and_recipes_use_public_names_only():
    """But for the replays and fleets, which drive the controller's pure functions with no device
    around, for a fleet's codes, link's rules and ceiling, for the star's, which lets another
    library add what its devices compute, and for that of adapting, which has head and learner meet
    without a wire.
    """
    fleets = {
        "crowd.py": "splitrt.edge.head", "device.py": "splitrt.edge.link",
        "tails.py": "splitrt.cloud.tail",
    }  # fmt: skip
    for folder in ("benchmarks", "models", "demos"):
        for path in (ROOT / folder).glob("**/*.py"):
            for name in imports(path):
                if name.startswith("splitrt"):
                    public = name in PUBLIC or name.startswith("splitrt.wire.")
                    replays = path.parent.name in ("link", "endtoend", "fleet")
                    pure = replays and name.startswith("splitrt.core")
                    star = path.parent.name == "star" and path.name == "with_gloo.py"
                    inner = star and name.startswith(("splitrt.star.", "splitrt.core.shards"))
                    fleet = path.parent.name == "fleet" and name == fleets.get(path.name)
                    there = ("splitrt.cloud.learn", "splitrt.cloud.program")
                    halves = (*there, "splitrt.core.", "splitrt.edge.head")
                    met = path.parent.name == "adapt" and name.startswith(halves)
                    assert public or pure or inner or fleet or met, path


def test_importing_splitrt_imports_no_torch_no_cv2_and_nothing_of_chat_metrics_or_traces():
    code = (
        "import sys, splitrt, splitrt.cli;"
        "heavy = ('torch', 'cv2', 'onnx', 'tokenizers', 'jinja2', 'starlette', 'uvicorn', 'zmq',"
        "'prometheus_client', 'opentelemetry');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_rays_own_processes_import_is_small():
    code = (
        "import sys, splitrt.fleet.book, splitrt.fleet.ingress, splitrt.fleet.scale;"
        "print([name for name in ('ray', 'torch', 'splitrt.cloud') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_sorted_and_there():
    import splitrt
    import splitrt.train

    for module in (splitrt, splitrt.train):
        names = module.__all__
        assert sorted(names) == sorted(set(names))
        assert all(hasattr(module, name) for name in names)


def test_generated_code_and_dependencies_agree_on_versions():
    """What grpcio-tools 1.80.0 wrote asks for protobuf ≥ 6.31.1 and grpcio ≥ 1.80.0."""
    wire = ROOT / "splitrt" / "wire"
    assert "6,\n    31,\n    1," in (wire / "tail_pb2.py").read_text()
    assert "GRPC_GENERATED_VERSION = '1.80.0'" in (wire / "tail_pb2_grpc.py").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert '"protobuf>=6.31.1,<8"' in project and '"grpcio>=1.80"' in project
