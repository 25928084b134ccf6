"""A text is the same however many devices say it, and whichever of them are lost meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from splitrt.core.sample import Sampling
from splitrt.errors import LinkError, ModelError, PacketError
from splitrt.relay import Relay
from splitrt.star import EXACT, Figures, Room, Seal, Star, Way
from splitrt.star.figures import slow
from splitrt.train import shard
from tests.language import FAMILIES, VOCAB, checkpoint, reference
from tests.star.crew import PATIENCE, Process, threads
from tests.star.toy import until

MANY = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160}
SHARES = ((1,), (1, 1), (1, 1, 1), (1, 1, 1, 1), (3, 1, 2))
LENGTH = 64  # tokens
PROMPT = np.random.default_rng(5).integers(2, VOCAB, 70).tolist()  # more than one chunk


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family: six heads, of which three each share keys and values."""
    folder = tmp_path_factory.mktemp("checkpoints")
    changes = MANY | {"hidden_size": 96, "head_dim": 16}
    return {family: checkpoint(folder / family, family, **changes) for family in FAMILIES}


@pytest.fixture(scope="module")
def four(sources, tmp_path_factory) -> Path:
    """A Llama for four devices."""
    folder = tmp_path_factory.mktemp("stars") / "four"
    shard(sources["llama"], folder, shares=(1, 1, 1, 1), weights="fp32")
    return folder


@pytest.fixture(scope="module")
def wanted(four) -> list[int]:
    """What one device alone says with it."""
    with Star(four) as star:
        return said(star)


def said(star: Star, prompt: list[int] = PROMPT, most: int = LENGTH) -> list[int]:
    return [token.id for token in star.answer(prompt, most=most)]


@torch.no_grad()
def greedy(source: Path) -> list[int]:
    """What transformers says."""
    model = reference(source)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    found = model.generate(ids, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    return found[0, len(PROMPT) :].tolist()


def ended(ids: list[int], stop: int) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop in ids else ids


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_devices_says_what_transformers_says(sources, tmp_path, family):
    expected = ended(greedy(sources[family]), 1)
    assert len(expected) > 8
    for shares in SHARES:
        folder = tmp_path / "-".join(map(str, shares))
        shard(sources[family], folder, shares=shares, weights="fp32")
        with Star(folder) as star, threads(star, len(shares) - 1, tmp_path / "store"):
            assert said(star) == expected, shares


@pytest.mark.parametrize("wire", ["f32", "f16", "q8"])
@pytest.mark.parametrize("weights", ["int4", "int8", "fp32"])
def test_a_sampled_text_is_the_same_for_any_division_and_number_of_drafts(
    sources, tmp_path, weights, wire
):
    """Of one split and wire: who holds which shard, and by which way, changes no bit of a sum."""
    folder = tmp_path / "made"
    shard(sources["qwen3"], folder, shares=(1, 1, 1, 1), weights=weights)
    texts = []
    for kind, spokes, drafts in (("star", 0, 0), ("star", 1, 6), ("mesh", 2, 0), ("star", 3, None)):
        how = {"sampling": Sampling(0.8, 0.9, 7), "drafts": drafts, "ways": [Way(kind, wire)]}
        with Star(folder, **how) as star, threads(star, spokes, tmp_path / "store"):
            texts.append(said(star, PROMPT[:20] * 3))
            assert star.way == Way(kind if spokes else "star", wire)
    assert texts[0] == texts[1] == texts[2] == texts[3] and len(texts[0]) > 8


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_rounded_weights_say_the_same_after_a_loss(sources, tmp_path, weights):
    """What was said before is computed again in fewer steps, and has the same bits."""
    folder = tmp_path / "made"
    shard(sources["llama"], folder, shares=(1, 1, 1), weights=weights)
    for seed in range(6):
        how = {"sampling": Sampling(0.9, 1.0, seed), "drafts": 2 * (seed % 2)}
        with Star(folder, **how) as star:
            wanted = said(star)
        with Star(folder, **how, ways=EXACT) as star, threads(star, 2, tmp_path / "store") as two:
            found = []
            for token in star.answer(PROMPT, most=LENGTH):
                found.append(token.id)
                if len(found) == 9:
                    two[seed % 2].close()
            assert found == wanted


def test_drafts_that_are_agreed_with_save_steps(tmp_path):
    """A model whose every token follows from the one before: it soon goes round in circles."""
    source = checkpoint(tmp_path / "checkpoint", **MANY | {"hidden_size": 96, "head_dim": 16})
    path = source / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if "o_proj" in name or "down_proj" in name:
            weights[name][:] = 0
    save_file(weights, path, {"format": "pt"})
    shard(source, tmp_path / "made", shares=(1, 1), weights="fp32")
    with Star(tmp_path / "made", drafts=0) as star:
        wanted = said(star, most=200)
        assert star.tally.requests == len(wanted) == 200
    for drafts in (1, 4, None):
        with Star(tmp_path / "made", drafts=drafts) as star, threads(star, 1, tmp_path / "store"):
            assert said(star, most=200) == wanted
            tally = star.tally
        assert tally.draft == tally.accepted > 40
        assert tally.requests + tally.draft == 200


def test_a_window_says_the_same(four, wanted, tmp_path):
    for room in (Room(window=3), Room(window=1), Room(memory=4 * 10**9)):
        with Star(four, room=room) as star, threads(star, 1, tmp_path):
            assert said(star) == wanted
    with pytest.raises(ModelError, match="MB are too few"):
        with Star(four, room=Room(memory=1000)) as star:
            said(star)


@pytest.mark.parametrize(
    "way", [Way("star", "f16"), Way("mesh", "q8"), Way("mesh", "f32")], ids=str
)
def test_sums_may_be_made_in_other_ways(four, wanted, tmp_path, way):
    with Star(four, ways=[way]) as star, threads(star, 3, tmp_path):
        found = said(star)
        assert star.way == way and len(found) > 8
        assert way.wire != "f32" or found == wanted


def test_a_conversation_goes_on_where_it_was(four, tmp_path):
    with Star(four) as star, threads(star, 2, tmp_path):
        first = said(star, PROMPT[:9], 5)
        second = said(star, PROMPT[9:20], 5)
        whole = [*PROMPT[:9], *first, *PROMPT[9:20]]
        assert list(star.ids) == [*whole, *second]
        star.truncate(12)
        again = said(star, [*whole[12:]], 5)
        assert again == second
        tokens = star.answer(PROMPT[:3], most=9)
        next(tokens)
        tokens.close()
        assert len(star.ids) == len(whole) + 5 + 3 + 1


@pytest.mark.parametrize("place", [0, 1, 7, 30])
def test_a_text_goes_on_when_a_spoke_leaves(four, wanted, tmp_path, place):
    with Star(four) as star, threads(star, 3, tmp_path) as points:
        found = []
        for token in star.answer(PROMPT, most=LENGTH):
            found.append(token.id)
            if len(found) == place + 1:
                points[1].close()
        assert found == wanted
        assert sorted(one.name for one in star.figures()) == ["hub", "pi1", "pi3"]
        star.truncate(0)
        assert said(star) == wanted


def test_the_hub_goes_on_alone_and_spokes_that_come_are_used_by_the_next_text(
    four, wanted, tmp_path
):
    with Star(four) as star:
        with threads(star, 2, tmp_path):
            tokens = star.answer(PROMPT, most=LENGTH)
            found = [next(tokens).id, next(tokens).id]
        found += [token.id for token in tokens]
        assert found == wanted and len(star.figures()) == 1
        with threads(star, 3, tmp_path):
            star.truncate(0)
            assert said(star) == wanted and len(star.figures()) > 1


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGSTOP], ids=lambda one: one.name)
def test_a_spoke_may_be_killed_or_stopped_at_any_time(four, wanted, tmp_path, which):
    """At the prompt and at several tokens; each time it comes back for the next text."""
    with Star(four) as star, ExitStack() as stack:
        for name in ("pi1", "pi2"):
            stack.enter_context(Process(star.address, tmp_path / name, name))
        for place in (0, 3, 20):
            lost = stack.enter_context(Process(star.address, tmp_path / "lost", f"lost{place}"))
            assert len(star.gather(3, PATIENCE)) == 3
            found = []
            if place == 0:
                lost.send(which)
            for token in star.answer(PROMPT, most=LENGTH):
                found.append(token.id)
                if len(found) == place:
                    lost.send(which)
            assert found == wanted
            assert lost.name not in {one.name for one in star.figures()}
            lost.send(signal.SIGKILL)
            star.truncate(0)


def test_a_link_that_is_cut_loses_the_spoke_behind_it(four, wanted, tmp_path):
    with Star(four) as star:
        with Relay(star.address) as relay, Process(relay.address, tmp_path / "far", "far"):
            with Process(star.address, tmp_path / "near", "near"):
                assert len(star.gather(2, PATIENCE)) == 2
                found = []
                for token in star.answer(PROMPT, most=LENGTH):
                    found.append(token.id)
                    if len(found) == 5:
                        relay.hole = True
                        until(lambda: len(star.roster.guests) == 1, "nobody noticed")
                assert found == wanted
                assert [one.name for one in star.figures()] == ["hub", "near"]


def test_a_slow_device_is_named():
    """Who computes half as long again as the others, whatever it holds."""
    figures = [
        Figures(name, (place,), compute, 1.0, 0.0, 0.0, 1 << 20)
        for place, (name, compute) in enumerate([("hub", 9.0), ("pi1", 16.0), ("pi2", 10.0)])
    ]
    assert [one.name for one in slow(figures)] == ["pi1"]
    assert slow(figures[:1]) == [] and slow([figures[0], figures[2]]) == []


def test_who_knows_the_secret_belongs_to_it(four, wanted, tmp_path):
    seal = Seal(secret="sixteen letters.")
    with Star(four, seal=seal) as star, threads(star, 1, tmp_path, seal):
        assert said(star) == wanted


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda star: said(star, []), "nothing to answer to"),
        (lambda star: said(star, [VOCAB]), f"token {VOCAB}"),
        (lambda star: said(star, [-1]), "token -1"),
        (lambda star: said(star, [5] * 600), "room for 512"),
        (lambda star: star.truncate(1), "0 tokens cannot become 1"),
    ],
)
def test_what_cannot_be_said_is_an_error_and_the_star_goes_on(four, wanted, call, told):
    with Star(four) as star:
        with pytest.raises(PacketError, match=told):
            call(star)
        assert said(star) == wanted


def test_figures_are_there_before_the_first_text_and_after_the_last(four, tmp_path):
    with Star(four) as star:
        assert [(one.name, one.shards) for one in star.figures()] == [("hub", ())]
        with threads(star, 1, tmp_path):
            tokens = star.answer(PROMPT, most=LENGTH)
            next(tokens)
    assert [one.name for one in star.figures()] == ["hub"]
    tokens.close()


def test_a_star_that_cannot_begin_leaves_no_thread_and_no_file_open(four, tmp_path):
    made = shutil.copytree(four, tmp_path / "made")
    for part in made.glob("*/feed-0.onnx"):
        part.write_bytes(b"no graph")
    before = set(threading.enumerate())
    with pytest.raises(ModelError, match="does not load"):
        Star(made, room=Room(window=3))
    left = set(threading.enumerate()) - before
    assert not [one.name for one in left if one.name in ("window", "roster", "roster-news")]
    still = [os.readlink(one.path) for one in os.scandir("/proc/self/fd") if one.is_symlink()]
    assert not [path for path in still if path.startswith(str(made))]


def test_an_answer_can_be_stopped(four):
    with Star(four) as star:
        found = []
        for token in star.answer(PROMPT, most=LENGTH):
            found.append(token.id)
            star.cancel()
        assert len(found) == 1 and len(star.ids) == len(PROMPT) + 1
        with pytest.raises(PacketError, match="-1 drafts"):
            Star(four, drafts=-1)
        with pytest.raises(LinkError, match="cannot be bound"):
            Star(four, listen=star.address)
