"""The verbs of language models, run as a user would, on a tiny random model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from splitrt.cli_chat import Talk
from splitrt.cloud import Server
from splitrt.coloured import Ink
from splitrt.core.spoken import Difference, Token
from splitrt.edge.chat import Chat
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.errors import PacketError
from splitrt.train import divide
from tests.conftest import ROOT
from tests.language import checkpoint
from tests.parrot import Parrot
from tests.words import byte_level, directory

KEY = "open-sesame"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("language")
    made = checkpoint(top / "checkpoint", seed=3)
    divide(made, top / "tiny", cut=2, exits=[1, 2], weights="fp32", resume=("hidden", "tokens"))
    return top / "tiny"


@pytest.fixture(scope="module")
def cloud(folder) -> Iterator[str]:
    with Server(folder, port=0, threads=1) as running:
        yield running.address


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def splitrt(*words: object, said: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitrt.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, input=said, env=environment(**more)
    )


def told(*words: object, said: str = "") -> list[dict]:
    done = splitrt(*words, "--json", said=said)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_spec_says_what_ask_says_and_asks_less(folder, cloud):
    words = ("chat", folder, "--cloud", cloud, "--prompt", "Tell me", "--max-tokens", "40")
    (spec,) = told(*words, "--drafts", "4")
    (ask,) = told(*words, "--mode", "ask")
    assert spec["text"] == ask["text"] and spec["tokens"] == ask["tokens"]
    assert sum(spec["where"].values()) == spec["tokens"] and spec["where"]["edge"] == 0
    assert ask["requests_per_token"] == 1 >= spec["requests_per_token"]
    assert ask["where"]["cloud"] == ask["tokens"]
    assert spec["bytes_up"] > 0 and spec["tokens_per_s"] > 0
    (tokens,) = told(*words, "--resume", "tokens")
    assert 0 < tokens["bytes_up"] < spec["bytes_up"]


def test_a_seed_makes_the_same_text(folder, cloud):
    words = ("chat", folder, "--cloud", cloud, "--prompt", "Tell me", "--max-tokens", "20")
    (first,), (same,), (other,) = (
        told(*words, "--temperature", "1", "--top-p", "0.95", "--seed", seed, "--codec", "f16")
        for seed in (1, 1, 2)
    )
    assert first["text"] == same["text"] != other["text"]


def test_without_a_server_the_device_speaks_alone(folder):
    (found,) = told("chat", folder, "--prompt", "Tell me", "--max-tokens", "10")
    assert found["where"] == {"edge": found["tokens"], "draft": 0, "cloud": 0}
    assert found["bytes_up"] == found["requests_per_token"] == 0


def test_lines_of_standard_input_are_one_conversation(folder, cloud):
    words = ("chat", folder, "--cloud", cloud, "--max-tokens", "5", "--codec", "f32")
    first, second = told(*words, said="Tell me\n\nAnd then?\n")
    (alone,) = told(*words, "--prompt", "And then?")
    row = 64 * 4
    assert second["text"] != alone["text"]
    assert second["bytes_up"] < first["bytes_up"] + 2 * alone["bytes_up"]
    assert min(first["bytes_up"], second["bytes_up"]) > 5 * row


def test_no_colours_go_into_a_file(folder, cloud):
    done = splitrt("chat", folder, "--cloud", cloud, "--prompt", "Tell me", "--max-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "made here" not in done.stdout
    assert "tokens: " in done.stdout and "requests a token" in done.stdout


@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}])
def test_on_a_terminal_tokens_have_the_colour_of_their_place(folder, cloud, more):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "splitrt.cli", "chat", str(folder), "--cloud", cloud]
    command += ["--max-tokens", "8"]
    env = environment(**{"TERM": "xterm", **more})
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = b""
        os.write(ours, b"Tell me\n")
        with contextlib.suppress(OSError):  # a terminal whose other end is closed
            while block := os.read(ours, 1 << 16):
                seen += block
                if b"tokens/s]" in seen:
                    os.write(ours, b"\x04")
    assert process.returncode == 0
    coloured = not more
    assert (b"\x1b[36m" in seen) is coloured and (b"made by the server" in seen) is coloured
    assert b"> " in seen and b"Traceback" not in seen


def test_a_text_cannot_steer_the_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    Ink(screen).token(Token(1, "a\x1b]0;owned\x07\r\n\tb", "cloud", 0))
    shown = screen.getvalue()
    assert shown.count("\x1b") in (0, 2) and "\x07" not in shown and "\r" not in shown
    assert "\n\tb" in shown


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(tmp_path, capsys):
    words = Words(directory(tmp_path / "parrot", byte_level()))
    said = words.ids("Once upon a time there was a dog", begin=False)

    class Interrupted(list):
        def __getitem__(self, _):
            yield from said[:3]
            signal.raise_signal(signal.SIGINT)
            yield from said[3:]

    parrot = Parrot(lambda ids: Interrupted() if len(parrot.given) == 1 else said)
    talk, before = Talk(Teller(words, parrot), None, None), signal.getsignal(signal.SIGINT)
    talk.say("Hello")
    talk.say("Again")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == words.text(said[:3]) and second["text"] == words.text(said)
    held = words.text(parrot.ids)
    assert held == f"Hello{first['text']}\nAgain{second['text']}"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("coloured", [False, True])
def test_where_a_text_said_alone_parts_from_the_servers_is_shown_once(tmp_path, capsys, coloured):
    words = Words(directory(tmp_path / "parrot", byte_level()))
    said = words.ids("Once upon a time", begin=False)
    dog, cat = (words.ids(text, begin=False)[0] for text in ("dog", "cat"))

    class Back(Parrot):
        def answer(self, ids, *, most=200):
            yield from super().answer(ids, most=most)
            self.difference = Difference(7, dog, cat)

    talk = Talk(Teller(words, Back(lambda ids: said)), Ink() if coloured else None, None)
    talk.say("Hello")
    talk.say("Again")
    seen = capsys.readouterr().out
    if not coloured:
        first, second = map(json.loads, seen.splitlines())
        assert first["difference"] == {"position": 7, "said": dog, "instead": cat}
        assert second["difference"] is None
    else:
        wanted = f"at token 7 it would have said {words.text([cat])!r}, not {words.text([dog])!r}"
        assert seen.count(wanted) == 1


def test_a_conversation_that_is_full_begins_anew(tmp_path, capsys):
    words = Words(directory(tmp_path / "parrot", byte_level()))
    said = words.ids("Once upon a time", begin=False)
    parrot = Parrot(lambda ids: said, longest=40)
    talk = Talk(Teller(words, parrot), None, None)
    for _ in range(6):
        talk.say("Hello")
    seen = capsys.readouterr()
    assert [json.loads(line)["text"] for line in seen.out.splitlines()] == ["Once upon a time"] * 6
    assert "begins anew" in seen.err and len(parrot.ids) <= 40
    with pytest.raises(PacketError, match="room for 40"):
        talk.say("Hello " * 40)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chat", "TINY", "--mode", "spec", "--prompt", "x"), "without a server"),
        (("chat", "TINY", "--mode", "speck", "--prompt", "x"), "no mode 'speck'"),
        (("chat", "TINY", "--prompt", "x", "--temperature", "-1"), "temperature"),
        (("chat", "nowhere", "--prompt", "x"), "no model.toml"),
        (("chat", ROOT / "models" / "cifar10-resnet", "--prompt", "x"), "holds no language model"),
        (("api", "nowhere"), "no model.toml"),
        (("api", "TINY", "--api-key-file", "/dev/null"), "empty or not plain"),
        (("api", "TINY", "--host", "192.0.2.1"), "another --port"),
        (("demo", "chat", "--model", "nowhere"), "no model.toml"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(folder, words, said):
    done = splitrt(*(folder if word == "TINY" else word for word in words))
    assert done.returncode == 1
    assert said in done.stderr and "help:" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_another_demo_are_refused():
    for words in (("nonsense",), ("--model", "x"), ("chat", "--source", "x")):
        done = splitrt("demo", *words)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_demo_tells_a_story_and_compares_it_with_always_asking(folder):
    done = splitrt("demo", "chat", "--model", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical_to_always_ask"] is True
    assert set(found["where"]) == {"edge", "draft", "cloud"}
    assert sum(found["where"].values()) == found["tokens"] > 0
    for key in ("requests_per_token", "bytes_up", "tokens_per_s"):
        assert found[key] > 0
    assert found["always_ask"]["requests_per_token"] == 1
    shown = splitrt("demo", "chat", "--model", folder)
    assert shown.returncode == 0, shown.stderr
    assert "Once upon a time" in shown.stdout and "the same text" in shown.stdout


@pytest.mark.parametrize("mode", ["edge", "ask"])
def test_a_text_has_one_answer_whatever_was_said_before(folder, tmp_path, mode):
    """With weights whose rows depend on how many are computed at once."""
    divide(folder.parent / "checkpoint", tmp_path / "int8", cut=2, exits=[2], weights="int8")
    words = Words(tmp_path / "int8")
    long = "The old lighthouse keeper counted the boats that came home. " * 6
    with Server(tmp_path / "int8", port=0, threads=1) as server:
        with Chat(tmp_path / "int8", server.address, mode=mode, codec="q8") as chat:
            teller = Teller(words, chat)
            answers, shared = [], []
            for text in (long + "Why?", "Who?", long + "When?", long + "Why?", long + "Why?"):
                turn = teller.turn(text)
                shared.append(teller.held(turn))
                answers.append([token.id for token in teller.say(turn, most=12)])
    assert answers[0] == answers[3] == answers[4] != answers[2]
    assert shared[:3] == [0, 0, 0] and shared[3] == shared[4] > 0


@contextlib.contextmanager
def served_api(folder: Path, *words: object, **more: str) -> Iterator[str]:
    """`splitrt api` in a process of its own; its address."""
    command = [sys.executable, "-m", "splitrt.cli", "api", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, text=True, env=environment(**more)
    )
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    try:
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        alarm.cancel()
        process.kill()
        process.wait()


def test_the_openai_client_talks_with_a_device_and_its_server(folder, cloud):
    with served_api(folder, "--cloud", cloud, "--drafts", "4", SPLITRT_API_KEY=KEY) as address:
        client = openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=60)
        name = client.models.list().data[0].id
        messages = [{"role": "user", "content": "Tell me"}]
        whole = client.chat.completions.create(model=name, messages=messages, max_tokens=20)
        (same,) = told(
            "chat", folder, "--cloud", cloud, "--prompt", "Tell me", "--max-tokens", "20"
        )
        assert whole.choices[0].message.content == same["text"]
        assert whole.model_extra["splitrt"]["where"]["cloud"] > 0
        pieces = client.chat.completions.create(
            model=name, messages=messages, max_tokens=20, stream=True
        )
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert text == same["text"]
        seeded = [
            client.completions.create(
                model=name, prompt="Tell me", max_tokens=12, temperature=1.0, seed=seed
            )
            for seed in (7, 7, 8)
        ]
        first, again, other = (found.choices[0].text for found in seeded)
        assert first == again != other
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=name, messages=messages, n=2)
