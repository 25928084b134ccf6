"""Exits of a language model, trained on frozen layers."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from splitrt.core.language import Language
from splitrt.core.manifest import verified
from splitrt.edge.decoder import Decoder
from splitrt.errors import ModelError
from splitrt.train import divide, early
from splitrt.train.early import texts
from tests.language import SENTENCES, checkpoint


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    divide(checkpoint(folder / "whole"), folder / "parted", cut=3, exits=[1, 3], weights="fp32")
    return folder / "parted"


@pytest.fixture
def text(tmp_path):
    words = " ".join(SENTENCES).split()
    random = np.random.default_rng(0)
    path = tmp_path / "some.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for _ in range(60):
            file.write(json.dumps({"text": " ".join(random.permutation(words))}) + "\n")
    return path


def test_exits_come_nearer_to_the_last_layer_and_say_how_often_they_are_right(parted, text):
    before = Language.load(parted)
    layers = (parted / "layers.safetensors").read_bytes()
    found = early(parted, text, epochs=2)
    assert found == Language.load(parted) and found.digest != before.digest
    assert [one.layer for one in found.exits] == [1, 3]
    for one, was in zip(found.exits, before.exits, strict=True):
        assert one.file != was.file and not (parted / was.file).exists()
        assert sum(one.share for one in one.bins) == pytest.approx(1, abs=0.01)
        mean = sum(one.share * one.accepted for one in one.bins)
        assert mean == pytest.approx(one.accepted, abs=0.01)
        assert [one.low for one in one.bins] == sorted(one.low for one in one.bins)
    assert found.exits[1].accepted > found.exits[0].accepted
    for name in found.files:
        verified(parted, found, name)
    assert (parted / "layers.safetensors").read_bytes() == layers


def test_an_exit_that_is_no_better_is_left_and_measured(parted, text):
    before = early(parted, text, epochs=2)
    after = early(parted, text, epochs=1, tokens=7000)
    assert [one.file for one in after.exits] == [one.file for one in before.exits]
    assert len(list(parted.glob("exit-*.onnx"))) == 2


def test_the_device_runs_what_was_trained(parted, text):
    found = early(parted, text, epochs=1)
    step = Decoder(parted, found).step([1, 5, 9])
    assert np.isfinite(step.logits).all()


def test_a_text_that_is_too_short_is_an_error(parted, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.\n\nThe end.")
    with pytest.raises(ModelError, match="tokens of text"):
        early(parted, short)


def test_texts_come_from_lines_and_from_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nlines")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(texts(tmp_path / "a.txt")) == ["one", "two\nlines"]
    assert list(texts(tmp_path / "b.jsonl")) == ["one", "two"]


@pytest.mark.parametrize("wrong", ['{"words": 1}', "not JSON", "[1]"])
def test_a_file_without_texts_is_an_error(tmp_path, wrong):
    (tmp_path / "a.jsonl").write_text(wrong)
    with pytest.raises(ModelError, match="is no text"):
        list(texts(tmp_path / "a.jsonl"))
