"""A language model's layers on the device: going on, going back, going deeper later."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from splitrt.core.language import Language
from splitrt.edge.decoder import CHUNK, Decoder
from splitrt.errors import ModelError, PacketError, SplitrtError
from splitrt.train import divide
from tests.language import VOCAB, checkpoint

TEXT = np.random.default_rng(5).integers(2, VOCAB, 200).tolist()
EXITS = (1, 2, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model, which sees 40 positions back, in fp32 and in int4."""
    parent = tmp_path_factory.mktemp("languages")
    source = checkpoint(parent / "checkpoint", "mistral", sliding_window=40)
    for weights in ("fp32", "int4"):
        divide(source, parent / weights, cut=3, exits=EXITS, weights=weights, longest=256)
    return {weights: parent / weights for weights in ("fp32", "int4")}


@pytest.fixture(params=["fp32", "int4"])
def decoder(folders, request) -> Decoder:
    folder = folders[request.param]
    return Decoder(folder, Language.load(folder))


@pytest.fixture
def exact(folders) -> Decoder:
    return Decoder(folders["fp32"], Language.load(folders["fp32"]))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for the last digits of float32, which depend on how many rows go at once."""
    return np.allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_new_decoder_holds_nothing(decoder):
    assert (decoder.n, decoder.settled) == (0, 0)


def test_a_step_gives_a_row_for_each_token_and_logits_of_the_last(decoder):
    step = decoder.step(TEXT[:5])
    assert step.rows.shape == (5, 64) and step.rows.dtype == np.float32
    assert step.logits.shape == (VOCAB,) and step.logits.dtype == np.float32
    assert (decoder.n, decoder.settled) == (5, 5)


def test_rows_are_their_own_copy(decoder):
    first = decoder.step(TEXT[:1])
    kept = first.rows.copy(), first.logits.copy()
    decoder.step(TEXT[1:2])
    decoder.step(TEXT[2:3])
    assert np.array_equal(first.rows, kept[0]) and np.array_equal(first.logits, kept[1])


def test_a_prompt_is_run_in_chunks_of_the_same_size(decoder):
    """So its rows are bit for bit those of a caller who hands over the chunks."""
    whole = decoder.step(TEXT[:150]).rows
    decoder.truncate(0)
    parts = [decoder.step(TEXT[i : min(i + CHUNK, 150)]).rows for i in range(0, 150, CHUNK)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_one_token_at_a_time_is_the_same_whatever_was_rolled_back(decoder):
    decoder.step(TEXT[:20])
    plain = [decoder.step([token]) for token in TEXT[20:40]]
    decoder.truncate(20)
    for i, token in enumerate(TEXT[20:40]):
        decoder.step(TEXT[100 + i : 103 + i])  # drafts that nobody wanted
        decoder.truncate(20 + i)
        for draft in TEXT[150 : 150 + i % 3]:
            decoder.step([draft])
        decoder.early(TEXT[60 + i : 62 + i], 1)
        if i % 2:
            decoder.deeper(2)
        decoder.truncate(20 + i)
        again = decoder.step([token])
        assert np.array_equal(again.rows, plain[i].rows)
        assert np.array_equal(again.logits, plain[i].logits)


def test_two_decoders_of_one_folder_agree_to_the_bit(folders):
    for folder in folders.values():
        pair = [Decoder(folder, Language.load(folder)).step(TEXT[:70]) for _ in "ab"]
        assert np.array_equal(pair[0].rows, pair[1].rows)
        assert np.array_equal(pair[0].logits, pair[1].logits)


def test_early_then_deeper_is_a_step(decoder):
    wanted = [decoder.step([token]) for token in TEXT[:30]]
    decoder.truncate(0)
    for token, step in zip(TEXT[:30], wanted, strict=True):
        assert decoder.early([token], 1).shape == (VOCAB,)
        decoder.deeper(2)
        assert np.array_equal(decoder.deeper(3), step.logits)
        assert np.array_equal(decoder.settle(), step.rows)


def test_what_early_exits_left_out_is_settled_later(exact):
    """As it happens on a device: some tokens leave early, some go on, at last all are settled."""
    wanted = [exact.step([token]) for token in TEXT[:90]]
    exact.truncate(0)
    for i, token in enumerate(TEXT[:90]):
        exact.early([token], 1)
        if i % 3 == 1:
            exact.deeper(2)
        if i % 7 == 5:
            assert close(exact.deeper(3), wanted[i].logits)
    assert (exact.n, exact.settled) == (90, 0)
    assert close(exact.settle(), np.concatenate([step.rows for step in wanted]))
    assert (exact.n, exact.settled) == (90, 90)
    assert exact.settle().shape == (0, 64)
    exact.truncate(89)
    assert close(exact.step(TEXT[89:90]).logits, wanted[89].logits)


def test_an_early_exit_after_a_prompt_is_that_of_the_same_layers(exact):
    logits = exact.early(TEXT[:100], 2)
    rows = exact.settle()
    exact.truncate(0)
    exact.early(TEXT[:100], 1)
    assert np.array_equal(exact.deeper(2), logits)
    assert np.array_equal(exact.settle(), rows)


def test_the_same_exit_may_be_asked_twice(decoder):
    first = decoder.early(TEXT[:3], 2)
    assert np.array_equal(decoder.deeper(2), first)


@pytest.mark.parametrize("kept", [0, 4, 10, 13, 15])
def test_going_back_while_positions_are_owed(exact, kept):
    """Ten settled, three more at the second exit, two more at the first; any number is kept."""
    wanted = np.concatenate([exact.step([token]).rows for token in TEXT[:30]])
    exact.truncate(0)
    exact.step(TEXT[:10])
    exact.early(TEXT[10:13], 2)
    exact.early(TEXT[13:15], 1)
    exact.truncate(kept)
    assert (exact.n, exact.settled) == (kept, min(kept, 10))
    owed = exact.settle()
    assert len(owed) == max(0, kept - 10)
    assert not len(owed) or close(owed, wanted[10:kept])
    assert close(exact.step(TEXT[kept:30]).rows, wanted[kept:])


@pytest.mark.parametrize(
    "ids", [[VOCAB], [-1], [5, 10**9], [], [1.5], ["a"], [[1]], [2**70], [True]]
)
def test_what_is_no_token_is_refused_and_breaks_nothing(decoder, ids):
    wanted = [decoder.step(TEXT[:9]), decoder.step(TEXT[9:10])]
    decoder.truncate(9)
    for call in (decoder.step, lambda ids: decoder.early(ids, 1)):
        with pytest.raises(PacketError, match="help:"):
            call(ids)
    assert (decoder.n, decoder.settled) == (9, 9)
    assert np.array_equal(decoder.step(TEXT[9:10]).rows, wanted[1].rows)


def test_more_positions_than_there_is_room_for_are_refused(folders):
    manifest = Language.load(folders["fp32"])
    decoder = Decoder(folders["fp32"], manifest, longest=30)
    decoder.step(TEXT[:29])
    with pytest.raises(PacketError, match="29 positions and 2 more, room is for 30"):
        decoder.step(TEXT[:2])
    decoder.step(TEXT[:1])
    assert decoder.n == 30
    with pytest.raises(PacketError, match="room is for 30"):
        decoder.step(TEXT[:1])
    for room in (0, 257):
        with pytest.raises(ModelError, match="help: 1 to 256"):
            Decoder(folders["fp32"], manifest, longest=room)


def test_the_last_position_of_the_room_is_as_good_as_others(folders):
    manifest = Language.load(folders["fp32"])
    wide, narrow = (Decoder(folders["fp32"], manifest, longest=n) for n in (256, 200))
    assert close(narrow.step(TEXT).rows, wide.step(TEXT).rows)


def test_calls_in_the_wrong_order_are_named(exact):
    with pytest.raises(SplitrtError, match="no token is under way"):
        exact.deeper(2)
    exact.early(TEXT[:4], 1)
    with pytest.raises(SplitrtError, match=r"4 positions are owed\nhelp: settle"):
        exact.step(TEXT[4:5])
    with pytest.raises(SplitrtError, match="there are 1, 2, 3"):
        exact.deeper(4)
    for n in (-1, 5):
        with pytest.raises(SplitrtError, match="help: from 0 to 4"):
            exact.truncate(n)
    exact.settle()
    exact.truncate(2)
    with pytest.raises(SplitrtError, match="no token is under way"):
        exact.deeper(2)
    assert exact.step(TEXT[2:3]).rows.shape == (1, 64)


def test_a_provider_that_cannot_be_used_is_refused(folders):
    with pytest.raises(ModelError, match="run on CPU"):
        Decoder(folders["fp32"], Language.load(folders["fp32"]), provider="CUDA")


@pytest.fixture
def copied(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders["fp32"], tmp_path / "copied"))


def signed(folder: Path) -> Language:
    """model.toml again, with the hashes of the files as they are now."""
    text = (folder / "model.toml").read_text()
    for name, before in Language.load(folder).files.items():
        after = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        text = text.replace(f'"{name}" = "{before}"', f'"{name}" = "{after}"')
    (folder / "model.toml").write_text(text)
    return Language.load(folder)


@pytest.mark.parametrize("name", ["layers-0-1.bin", "layers-1-2.onnx", "exit-2.onnx", "voice.bin"])
def test_a_file_that_was_changed_is_not_loaded(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[-1] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(ModelError, match="changed after export"):
        Decoder(copied, Language.load(copied))


@pytest.mark.parametrize("name", ["layers-0-1.bin", "voice.bin"])
def test_a_file_of_weights_that_is_a_link_or_missing_is_not_loaded(copied, tmp_path, name):
    (copied / name).rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="missing or not a plain file"):
        Decoder(copied, Language.load(copied))
    (copied / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ModelError, match="missing or not a plain file"):
        Decoder(copied, Language.load(copied))


@pytest.mark.parametrize("where", ["beside.bin", "../beside.bin", "absolute", "layers-0-1.bin"])
def test_a_graph_cannot_open_other_files_than_its_own_weights(copied, where):
    """With right hashes, too: the folder may come from a stranger."""
    shutil.copy(copied / "voice.bin", copied / "beside.bin")
    shutil.copy(copied / "voice.bin", copied.parent / "beside.bin")
    path = copied / "voice.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                outside = str(copied.parent / "beside.bin")
                entry.value = outside if where == "absolute" else where
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"names files other than voice\.bin"):
        Decoder(copied, signed(copied))


def test_a_graph_cannot_hide_where_its_weights_lie(copied):
    """Protobuf takes the last of several values, and lengths written in more bytes than needed."""
    path = copied / "voice.onnx"
    plain = path.read_bytes()
    entry = b"\x0a\x08location\x12\x09voice.bin"
    hidden = {
        "second value": entry + b"\x12\x0b/etc/passwd",
        "value first": b"\x12\x0b/etc/passwd\x0a\x08location",
        "long length": b"\x0a\x88\x00location\x12\x09voice.bin",
    }
    for name, other in hidden.items():
        whole = b"j" + bytes([len(entry)]) + entry
        assert plain.count(whole) == 1
        path.write_bytes(plain.replace(whole, b"j" + bytes([len(other)]) + other))
        with pytest.raises(ModelError, match="names files other than"):
            Decoder(copied, signed(copied))
            pytest.fail(name)


def test_files_that_do_not_fit_one_another_are_told(copied):
    for end in (".onnx", ".bin"):
        shutil.copy(copied / f"layers-1-2{end}", copied / f"layers-0-1{end}")
    with pytest.raises(ModelError, match=r"names files other than layers-0-1\.bin"):
        Decoder(copied, signed(copied))
    data = (copied / "layers-1-2.onnx").read_bytes()
    data = data.replace(b"layers-1-2.bin", b"layers-0-1.bin")
    (copied / "layers-0-1.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="do not fit"):
        Decoder(copied, signed(copied))
