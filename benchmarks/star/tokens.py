"""Milliseconds per token of a star beside its peers, in one run.

python benchmarks/star/tokens.py --work build/star [--json FILE] [--quick] [--only REGEX]

(extras: `pip install -e '.[dev]' accelerate`; root, for links with a delay.) Models and what is
made of them stay in --work: 20 GB for both models. --list shows the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foreign
from crew import Crew, Failed
from goals import compared
from router import Net, tried
from rows import Figures, Row, middle, missing, planned, printed, standard
from start import gloo, reached, star, whole
from tokenizers import Tokenizer

from models import SIZES, make

PROMPT = "The sky is blue."  # 16 tokens: a byte each
WARM = 4  # tokens of the text before the one that counts


def measured(row: Row, options: argparse.Namespace) -> Figures:
    """One run of a row."""
    load = os.getloadavg()[0]
    try:
        with ExitStack() as stack:
            net = None
            if row.delay:
                net = stack.enter_context(Net(row.devices, delay=row.delay / 1000))
            crew = stack.enter_context(Crew())
            if row.name in PEERS:
                return abroad(crew, row, options, net, load)
            if row.name in ("transformers", "accelerate"):
                whole(crew, row, options)
            else:
                (gloo if row.name == "gloo" else star)(crew, row, options, net)
            cold = crew.asked(ids=options.ids, most=WARM)
            warm = crew.asked(ids=options.ids, most=options.most)
            if len(warm["ids"]) < options.most:
                raise Failed(f"the text ended after {len(warm['ids'])} tokens")
            return figures(warm, crew, load, cold["ms"][0])
    except Failed as error:
        said = [line for line in str(error).splitlines() if not line.startswith("help:")]
        return missing(f"failed: {said[-1]}")


PEERS = {"TPI-LLM": foreign.tpi, "distributed-llama": foreign.dllama}


def abroad(
    crew: Crew, row: Row, options: argparse.Namespace, net: Net | None, load: float
) -> Figures:
    """A peer from its own folder: one text, the first of its process."""
    folder = {"TPI-LLM": options.tpi_llm, "distributed-llama": options.distributed_llama}[row.name]
    if folder is None:
        return missing(f"not run: no --{row.name.lower()} DIR")
    hosts, within = reached(row, net)
    source = options.work / row.model
    said = PEERS[row.name](
        crew, row, source, options.work, folder, hosts, within, PROMPT, WARM + options.most
    )
    said["ms"] = [said["ms"][0], *said["ms"][WARM:]]
    said["ids"] = said["ids"][: options.most]
    return figures(said, crew, load, said["ms"][0], later=False)


def figures(
    said: dict[str, Any], crew: Crew, load: float, cold: float, *, later: bool = True
) -> Figures:
    """later: whether the text was not its process' first."""
    held = "+".join(str(len(one)) for one in said.get("held", []))
    return Figures(
        cold=round(cold, 1),
        first=round(said["ms"][0], 1) if later else None,
        token=round(statistics.median(said["ms"][1:]), 2),
        shares={kind: round(ms, 2) for kind, ms in said.get("shares", {}).items()},
        peak=round(crew.peak / 1e6),
        ids=tuple(said["ids"]),
        way=" ".join([said.get("way", ""), held]).strip(),
        load=round(load, 1),
    )


def prepared(options: argparse.Namespace) -> list[Row]:
    """The models on disk, the prompt's tokens, the rows that are wanted."""
    for model in options.models:
        make(options.work / model, SIZES[model])
        tokenizer = Tokenizer.from_file(str(options.work / model / "tokenizer.json"))
    options.ids = tokenizer.encode(PROMPT).ids
    return wanted(options)


def wanted(options: argparse.Namespace) -> list[Row]:
    rows = planned(options.models, options.counts, options.delays)
    return [row for row in rows if row == standard(row) or re.search(options.only, str(row))]


def run(options: argparse.Namespace) -> dict[Row, list[Figures]]:
    """Round after round all rows, so that a busy minute is nobody's own."""
    rows = prepared(options)
    found: dict[Row, list[Figures]] = {row: [] for row in rows}
    for turn in range(max(options.rounds)):
        for row in rows:
            rounds = options.rounds[min(options.models.index(row.model), len(options.rounds) - 1)]
            if turn < rounds:
                found[row].append(measured(row, options))
                print(turn, row, shown(found[row][-1]), file=sys.stderr, flush=True)
    return found


def shown(one: Figures) -> str:
    return one.why or f"{one.cold} {one.first} {one.token} ms, {one.peak:.0f} MB"


def written(options: argparse.Namespace, found: dict[Row, list[Figures]]) -> dict[str, Any]:
    """Everything, for --json."""
    splits = sorted(options.work.glob("*-in-*.json"))
    return {
        "rows": [
            asdict(row) | {"runs": [asdict(one) for one in runs]} for row, runs in found.items()
        ],
        "split": [json.loads(path.read_text()) for path in splits],
        "there_and_back_ms": {f"{ms:g}": tried(ms / 1000) for ms in options.delays if ms},
        "cores": os.cpu_count(),
        "tokens": options.most,
    }


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where models are made and kept")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    parser.add_argument("--quick", action="store_true", help="a small model, two devices, no delay")
    parser.add_argument("--only", default="", help="a pattern of the rows, as they are printed")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--models", default="58M,1.1B", type=lambda text: text.split(","))
    parser.add_argument("--rounds", default="3,1", type=numbers, help="for each model")
    parser.add_argument("--counts", default="1,2,4", type=numbers, help="devices")
    floats = {"default": "0,1,5", "type": lambda text: [*map(float, text.split(","))]}
    parser.add_argument("--delays", **floats, help="milliseconds one way")
    parser.add_argument("--most", type=int, default=33, help="tokens of an answer")
    parser.add_argument("--tpi-llm", type=Path, metavar="DIR", help="its clone")
    parser.add_argument("--distributed-llama", type=Path, metavar="DIR", help="its clone, built")
    options = parser.parse_args(words)
    if options.quick:
        options.models, options.rounds, options.counts = ["18M"], [1], [1, 2]
        options.delays, options.most = [0.0], 9
    if unknown := set(options.models) - set(SIZES):
        parser.error(f"no model {', '.join(sorted(unknown))}\nhelp: {', '.join(SIZES)}")
    return options


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    options = parsed()
    if options.list:
        print("\n".join(map(str, wanted(options))))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = run(options)
    medians = {row: middle(runs) for row, runs in found.items()}
    print(printed(medians), compared(medians), sep="\n\n", end="\n\n")
    told = written(options, found)
    for one in told["split"]:
        print("split {of}: {seconds} s, peak {peak_mb} MB (wanted: < {wanted_mb})".format(**one))
    for delay, ms in told["there_and_back_ms"].items():
        print(f"links of {delay} ms: 8 KiB there and back in {ms:.2f} ms")
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
