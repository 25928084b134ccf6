"""Peers in folders of their own, by their READMEs' commands: TPI-LLM and distributed-llama.

Neither is installed by this repository. https://github.com/Lizonghang/TPI-LLM, its examples'
`run_multihost.py` with a communicator of its own: DIR, with a virtual environment in DIR/.venv.
https://github.com/b4rtaz/distributed-llama: DIR with `dllama` built by `make dllama`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from crew import Crew, Failed, free
from rows import Row

HERE = Path(__file__).parent
WINDOW = 2  # layers that TPI-LLM's scheduler holds, its default
PREDICTED = re.compile(r"🔶 P(?:red)?\s*(\d+) ms(?: Sync\s*(\d+) ms)?")
EVALUATED = re.compile(r"🔷️? ?E(?:val)?\s*(\d+) ms(?: Sync\s*(\d+) ms)?")
Within = Callable[[int], list[str]]


def tpi(
    crew: Crew, row: Row, source: Path, work: Path, folder: Path, hosts: list[str], within: Within,
    prompt: str, most: int,
) -> dict[str, Any]:  # fmt: skip
    """One text by TPI-LLM, greedily (the best one token); its own code says when tokens come."""
    python = folder / ".venv" / "bin" / "python"
    port, spare = free(), work / f"tpi-{row.model}-in-{row.devices}"
    spare.mkdir(exist_ok=True)
    for path in source.iterdir():  # it writes its slices beside the checkpoint
        if not (spare / path.name).exists():
            (spare / path.name).symlink_to(path.resolve())
    words = ["--world_size", row.devices, "--master_ip", hosts[0], "--master_port", port]
    words += ["--model_type", "llama", "--model_path", spare, "--memory_window", WINDOW]
    words += [] if row.room else ["--disable_memory_schedule"]
    running = []
    for rank in range(row.devices):
        command = [python if python.exists() else sys.executable, HERE / "with_tpi.py", folder]
        command += ["--rank", rank, *words]
        command += ["--prompt", prompt, "--length", most, "--k", 1] if rank == 0 else []
        environment = {"PYTHONPATH": str(folder / "src")}
        running.append(crew.start(command, within=within(rank), environment=environment))
    while not (line := crew.heard(running[0])).startswith("{"):
        pass
    return json.loads(line)


def dllama(
    crew: Crew, row: Row, source: Path, work: Path, folder: Path, hosts: list[str], within: Within,
    prompt: str, most: int,
) -> dict[str, Any]:  # fmt: skip
    """One text by distributed-llama; it prints a line a token. Its tokenizer adds a BOS."""
    model, tokenizer = _converted(source, work, folder, row)
    common = ["--nthreads", 1]
    places = []
    for device in range(1, row.devices):
        places.append(f"{hosts[device]}:{free()}")
        port = places[-1].rsplit(":", 1)[1]
        crew.start([folder / "dllama", "worker", "--port", port, *common], within=within(device))
    time.sleep(1.0)  # they print nothing by which one could tell
    words = ["inference", "--model", model, "--tokenizer", tokenizer, "--prompt", prompt]
    words += ["--buffer-float-type", "f32" if row.weights == "f32" else "q80", "--temperature", 0]
    words += ["--steps", len(prompt) + 1 + most, "--max-seq-len", 256, *common]
    words += ["--workers", *places] if places else []
    root = crew.start([folder / "dllama", *words], within=within(0))
    return _read(crew, root, most)


def _read(crew: Crew, root: Any, most: int) -> dict[str, Any]:
    """Times between lines: those printed are whole milliseconds."""
    first, stamps = 0.0, []
    while len(stamps) < most:
        line = crew.heard(root)
        if found := EVALUATED.search(line):
            first += sum(int(one or 0) for one in found.groups())
        elif found := PREDICTED.search(line):
            stamps.append(time.perf_counter())
            if len(stamps) == 1:
                first += sum(int(one or 0) for one in found.groups())
    each = [1000 * (b - a) for a, b in pairwise(stamps)]
    return {"ids": [], "ms": [first, *each]}


def _converted(source: Path, work: Path, folder: Path, row: Row) -> tuple[Path, Path]:
    """Its own files of a checkpoint, made once by its converters."""
    model = work / f"dllama_model_{row.model}_{row.weights}.m"
    tokenizer = work / f"dllama_tokenizer_{row.model}.t"
    for made, words in (
        (model, ["convert-hf.py", source.resolve(), row.weights, row.model]),
        (tokenizer, ["convert-tokenizer-hf.py", source.resolve(), row.model]),
    ):
        if made.exists():
            continue
        with Crew() as crew:
            script = folder / "converter" / str(words[0])
            done = crew.start([sys.executable, script, *words[1:]], folder=work)
            done.communicate()
            if done.returncode:
                raise Failed(crew.words())
    return model, tokenizer
