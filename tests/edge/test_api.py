"""The OpenAI-compatible door, by the real client over a real socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrt.edge import api as door
from splitrt.edge.decoder import CHUNK
from splitrt.edge.desk import Desk, Until
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.errors import LinkDown, SplitrtError
from tests.parrot import Parrot
from tests.words import CHATML, byte_level, directory

HELLO = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = "It is the sea, said the dog: 🙂 hello!"
KEY = "open-sesame"


@dataclass(slots=True)
class Place:
    """A running API and what is behind it."""

    client: openai.OpenAI
    parrot: Parrot
    words: Words
    desk: Desk
    port: int

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict]:
        """One bare request; its status and its JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(link):
            link.request("POST", path, body, {"content-type": "application/json", **headers})
            answer = link.getresponse()
            return answer.status, json.loads(answer.read())

    @contextlib.contextmanager
    def asked(self, body: bytes) -> Iterator[None]:
        """A request whose client leaves, without having read anything."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(link):
            link.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            yield


@contextlib.contextmanager
def running(folder: Path, *, key: str | None = None, line: int = 8) -> Iterator[Place]:
    words = Words(folder)
    end = words.tokenizer.token_to_id("<|im_end|>")
    parrot = Parrot(lambda ids: [*words.ids(STORY, begin=False), end])
    with Desk(Teller(words, parrot), line=line) as desk, door.Door(port=0).listening() as there:
        server = door.server(door.Api(desk, "parrot", key).app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [there]})
        thread.start()
        port = there.getsockname()[1]
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=20
        )
        try:
            yield Place(client, parrot, words, desk, port)
        finally:
            parrot.may.release(1000)
            server.should_exit = True
            thread.join()


def until(holds) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return directory(tmp_path_factory.mktemp("parrot") / "parrot", byte_level(), CHATML)


@pytest.fixture
def there(folder) -> Iterator[Place]:
    with running(folder) as place:
        yield place


def test_a_conversation_is_answered_whole(there):
    found = there.client.chat.completions.create(model="parrot", messages=HELLO)
    choice = found.choices[0]
    assert choice.message.content == STORY and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and found.object == "chat.completion"
    read = len(there.words.prompt(HELLO))
    said = len(there.words.ids(STORY, begin=False)) + 1
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (read, said)
    assert found.usage.total_tokens == read + said
    told = found.model_extra["splitrt"]
    assert sum(told["where"].values()) == said and set(told["where"]) == {"edge", "draft", "cloud"}
    assert told["requests_per_token"] > 0 and told["bytes_up"] > 0


def test_a_conversation_is_answered_in_pieces(there):
    stream = there.client.chat.completions.create(
        model="parrot", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *pieces, end, used = list(stream)
    texts = [piece.choices[0].delta.content for piece in pieces]
    assert "".join(texts) == STORY and len([text for text in texts if text]) > 3
    assert pieces[0].choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == "stop"
    assert end.model_extra["splitrt"]["where"]["draft"] > 0
    assert used.choices == [] and used.usage.completion_tokens > 3
    assert len({piece.id for piece in (*pieces, end, used)}) == 1


def test_a_text_is_gone_on_with(there):
    found = there.client.completions.create(model="parrot", prompt="Once upon", max_tokens=5)
    first = there.words.ids(STORY, begin=False)[:5]
    assert found.choices[0].text == there.words.text(first)
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 5
    assert there.parrot.given == [there.words.ids("Once upon")]
    stream = there.client.completions.create(model="parrot", prompt=["Once upon"], stream=True)
    pieces = list(stream)
    ids = there.words.ids(STORY, begin=False)[:16]
    assert "".join(piece.choices[0].text for piece in pieces) == there.words.text(ids)


def test_the_next_turn_brings_only_what_is_new(there):
    first = there.client.chat.completions.create(model="parrot", messages=HELLO)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    messages = [*HELLO, said, {"role": "user", "content": "And then?"}]
    second = there.client.chat.completions.create(model="parrot", messages=messages)
    whole = there.words.prompt(messages)
    assert second.usage.prompt_tokens == len(whole)
    held = second.usage.prompt_tokens_details.cached_tokens
    assert held == first.usage.total_tokens
    assert there.parrot.given[1] == whole[held:]


def test_another_conversation_shares_whole_chunks_of_what_both_begin_with(there):
    """One text has one answer: what was said after another one is computed anew."""
    system = {"role": "system", "content": "You are a parrot. " * 9}
    read, held = [], []
    for question in ("Why?", "Who?", "Who?", "Why, and who?"):
        messages = [system, {"role": "user", "content": question}]
        found = there.client.chat.completions.create(model="parrot", messages=messages)
        read.append(found.usage.prompt_tokens)
        held.append(found.usage.prompt_tokens_details.cached_tokens)
        assert list(there.parrot.ids[: read[-1]]) == there.words.prompt(messages)
    assert held[0] == 0 and held[1] >= CHUNK
    assert all(size % CHUNK == 0 for size in held) and max(read) - held[1] < 2 * CHUNK
    short = [{"role": "user", "content": "Why?"}]
    found = there.client.chat.completions.create(model="parrot", messages=short)
    assert found.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stop_ends_the_answer_and_is_not_shown(there):
    for stream in (False, True):
        found = there.client.chat.completions.create(
            model="parrot", messages=HELLO, stop=["the dog", "absent"], stream=stream
        )
        if stream:
            pieces = list(found)
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            reason = pieces[-1].choices[0].finish_reason
        else:
            text, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (text, reason) == ("It is the sea, said ", "stop")


@given(st.lists(st.text("ab", max_size=3)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_pieces_end_where_the_whole_text_has_its_first_stop(pieces, stops):
    until, shown = Until(tuple(stops)), ""
    for piece in pieces:
        shown += until.push(piece)
        if until.over:
            break
    shown += until.end()
    whole = "".join(pieces)
    cuts = [whole.find(stop) for stop in stops if stop in whole]
    if not cuts:
        assert shown == whole and not until.over
    else:  # pieces may show an earlier stop before the one that begins first is whole
        assert until.over and whole.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_sampling_is_as_asked_and_a_seed_makes_it_the_same(there):
    create = there.client.chat.completions.create
    create(model="parrot", messages=HELLO, temperature=0.7, top_p=0.9, seed=-1)
    create(model="parrot", messages=HELLO, temperature=0)
    first = create(model="parrot", messages=HELLO, temperature=1)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    create(model="parrot", messages=[*HELLO, said, *HELLO], temperature=1)
    create(model="parrot", messages=HELLO, temperature=1)
    seeded, greedy, drawn, same, other = there.parrot.samplings
    assert (seeded.temperature, seeded.top_p, seeded.seed) == (0.7, 0.9, (1 << 63) - 1)
    assert greedy.temperature == 0
    assert drawn == same != other and drawn.temperature == other.temperature == 1


def test_parts_of_text_and_whole_answers_of_a_client_are_messages(there):
    answer = there.client.chat.completions.create(model="parrot", messages=HELLO)
    parts = [{"type": "text", "text": "And "}, {"type": "text", "text": "then?"}]
    messages = [*HELLO, answer.choices[0].message, {"role": "user", "content": parts}]
    found = there.client.chat.completions.create(model="parrot", messages=messages, user="me", n=1)
    assert found.usage.prompt_tokens_details.cached_tokens == answer.usage.total_tokens


@pytest.mark.parametrize(
    ("said", "param", "told"),
    [
        ({"n": 2}, "n", "one answer at a time"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"frobnicate": 1}, "frobnicate", "known are"),
        ({"tools": [{"type": "function"}]}, "tools", "not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not offered"),
        ({"logprobs": True}, "logprobs", "not offered"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not offered"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"prompt": "x"}, "prompt", "no parameter"),
        ({"messages": None}, "messages", "missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "no Unicode"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(there, said, param, told):
    body = json.dumps({"model": "parrot", "messages": HELLO, **said}).encode()
    status, found = there.post("/v1/chat/completions", body)
    error = found["error"]
    assert status == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and told in error["message"]
    assert there.parrot.given == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": NaN}', b"[" * 100_000, b"\xff"])
def test_what_is_no_request_is_refused(there, body):
    status, found = there.post("/v1/chat/completions", body)
    assert status == 400 and "message" in found["error"]


def test_large_bodies_forms_and_other_places_are_refused(there):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * door.LARGEST}]}).encode()
    assert there.post("/v1/chat/completions", body)[0] == 413
    status, found = there.post("/v1/completions", b"{}", **{"content-type": "text/plain"})
    assert status == 415 and "application/json" in found["error"]["message"]
    assert there.post("/v1/embeddings", b"{}")[0] == 404
    assert there.post("/v1/models", b"{}")[0] == 405


def test_more_than_the_model_has_room_for_is_refused_as_openai_does(there):
    with pytest.raises(openai.BadRequestError) as refused:
        there.client.completions.create(model="parrot", prompt="x " * 300)
    assert refused.value.code == "context_length_exceeded"
    found = there.client.completions.create(model="parrot", prompt="a" * 250, max_tokens=100)
    read = found.usage.prompt_tokens
    assert found.usage.completion_tokens == min(256 - read, 16) or found.usage.total_tokens == 256


def test_models_and_health_are_told(there):
    assert [model.id for model in there.client.models.list()] == ["parrot"]
    assert there.client.models.retrieve("parrot").owned_by == "splitrt"
    with pytest.raises(openai.NotFoundError) as unknown:
        there.client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    link = http.client.HTTPConnection("127.0.0.1", there.port, timeout=20)
    with contextlib.closing(link):
        link.request("GET", "/healthz")
        assert json.loads(link.getresponse().read())["status"] == "ok"


def test_a_key_is_asked_for(folder):
    with running(folder, key=KEY) as there:
        assert [model.id for model in there.client.models.list()] == ["parrot"]
        for wrong in ("", "open", KEY + "x", "öpen"):
            header = {"authorization": f"Bearer {wrong}".encode().decode("latin-1")}
            status, found = there.post("/v1/chat/completions", b"{}", **header)
            assert status == 401 and found["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            there.client.with_options(api_key="wrong").models.list()
    with pytest.raises(SplitrtError, match="empty or not plain"):
        door.Door(key="")


def test_requests_wait_in_line_and_too_many_are_told_to_come_again(folder):
    with running(folder, line=1) as there:
        there.parrot.may = threading.Semaphore(0)
        answers: list[str] = []

        def ask() -> None:
            found = there.client.chat.completions.create(model="parrot", messages=HELLO)
            answers.append(found.choices[0].message.content)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: there.desk.requests == count)
        with pytest.raises(openai.RateLimitError) as full:
            there.client.chat.completions.create(model="parrot", messages=HELLO)
        assert full.value.response.headers["retry-after"] == "1"
        there.parrot.may.release(1000)
        for thread in threads:
            thread.join()
        assert answers == [STORY, STORY]


def test_a_client_that_leaves_ends_its_answer(there):
    there.parrot.may = threading.Semaphore(4)
    stream = there.client.chat.completions.create(model="parrot", messages=HELLO, stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    until(lambda: there.desk.requests == 0)
    assert there.parrot.cancelled.is_set()
    there.parrot.may = threading.Semaphore(0)
    with there.asked(json.dumps({"messages": HELLO}).encode()):
        until(lambda: there.desk.requests == 1)
    until(lambda: there.desk.requests == 0)
    there.parrot.may.release(1000)
    found = there.client.chat.completions.create(model="parrot", messages=HELLO)
    assert found.choices[0].message.content == STORY


def test_a_client_that_leaves_the_line_is_never_answered(there):
    there.parrot.may = threading.Semaphore(0)
    first = threading.Thread(
        target=there.client.chat.completions.create,
        kwargs={"model": "parrot", "messages": HELLO},
    )
    first.start()
    until(lambda: there.desk.requests == 1)
    with there.asked(json.dumps({"messages": HELLO, "stream": True}).encode()):
        until(lambda: there.desk.requests == 2)
    until(lambda: there.desk.requests == 1)  # its place is free
    there.parrot.may.release(1000)
    first.join()
    until(lambda: there.desk.requests == 0)
    assert len(there.parrot.given) == 1


def test_what_fails_is_said_before_and_within_a_stream(there):
    def fails(ids):
        raise LinkDown("nobody answered\nhelp: start the server")

    taught, there.parrot.taught = there.parrot.taught, fails
    with pytest.raises(openai.InternalServerError) as down:
        there.client.chat.completions.create(model="parrot", messages=HELLO, stream=True)
    assert down.value.status_code == 503 and "nobody answered" in down.value.message

    class Half(list):
        def __getitem__(self, _):
            yield from list(self)
            raise LinkDown("nobody answers any more")

    there.parrot.taught = lambda ids: Half(there.words.ids("It is", begin=False))
    stream = there.client.chat.completions.create(model="parrot", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="any more"):
        list(stream)

    def breaks(ids):
        raise ZeroDivisionError("a secret of the inside")

    there.parrot.taught = breaks
    with pytest.raises(openai.InternalServerError) as broken:
        there.client.chat.completions.create(model="parrot", messages=HELLO)
    assert "secret" not in broken.value.message
    there.parrot.taught = taught
    found = there.client.chat.completions.create(model="parrot", messages=HELLO)
    assert found.choices[0].message.content == STORY
