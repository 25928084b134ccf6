"""Words: a checkpoint's own tokenizer and chat template, and text as it comes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from splitrt.core.shards import Shards
from splitrt.edge.template import Template
from splitrt.edge.tokens import Words
from splitrt.errors import ModelError, PacketError
from tests.words import BEGIN, END, KINDS, TEMPLATES, directory, star

TALK = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "  Why is the sky blue?\nTell me!  "},
    {"role": "assistant", "content": "It is the sea's <mirror> & 東京's 🙂."},
    {"role": "user", "content": "And at night?"},
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Words of a kind of tokenizer and a template, each made once."""
    top = tmp_path_factory.mktemp("words")

    @functools.cache
    def once(kind: str, template: str | None) -> Words:
        source = None if template is None else TEMPLATES[template]
        return Words(directory(top / f"{kind}-{template}", KINDS[kind](), source))

    def made(kind: str, template: str | None = None) -> Words:
        return once(kind, template)

    made.top = top
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages", [TALK[:2], TALK, TALK[1:2], TALK[1:]], ids=str)
def test_a_template_gives_what_transformers_gives(words, kind, template, messages):
    mine = words(kind, template)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(words.top / f"{kind}-{template}" / "tokenizer.json"),
        bos_token=BEGIN,
        eos_token=END,
        chat_template=TEMPLATES[template],
    )
    options = {"add_generation_prompt": True, "return_dict": False}
    text = theirs.apply_chat_template(messages, tokenize=False, **options)
    assert mine.rendered(messages) == text
    assert mine.prompt(messages) == theirs.apply_chat_template(messages, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_encoded_as_transformers_encodes_it(words, kind):
    mine = words(kind)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(words.top / f"{kind}-None" / "tokenizer.json")
    )
    for text in ("Once upon", " Once  upon\n", "東京 🙂 <s>x</s>y", "\u0301a"):
        assert mine.ids(text) == theirs(text)["input_ids"]
        assert mine.prompt([{"role": "user", "content": text}]) == theirs(text)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_what_decoding_all_at_once_gives(words, kind):
    mine = words(kind)
    vocab = mine.tokenizer.get_vocab_size()
    likely = st.text(max_size=12).map(lambda text: mine.tokenizer.encode(text).ids)
    any_id = st.lists(st.integers(0, vocab + 3), max_size=12)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(likely | any_id, max_size=6))
    def holds(pieces):
        ids = list(itertools.chain(*pieces))
        assert mine.text(ids) == mine.tokenizer.decode(ids, skip_special_tokens=True)

    holds()


@pytest.mark.parametrize("kind", KINDS)
@given(before=st.text(max_size=40), said=st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_stream_after_a_text_goes_on_as_in_it(words, kind, before, said):
    """Spaces at the seam included: an answer's first word is no text's first word."""
    mine = words(kind)
    ids = mine.ids(before + " x" + said)
    cut = max(1, len(mine.ids(before + " x")) - 1)
    first, rest = ids[:cut], ids[cut:]
    whole = mine.tokenizer.decode(ids, skip_special_tokens=True)
    shown = mine.tokenizer.decode(first, skip_special_tokens=True)
    if whole.startswith(shown) and not shown.endswith("\ufffd"):
        assert shown + mine.text(rest, first) == whole


def test_an_incomplete_character_waits_for_its_bytes(words):
    mine = words("bytes")
    speech = mine.stream()
    ids = mine.ids("🙂", begin=False)
    assert len(ids) > 1
    assert [speech.push(id) for id in ids] == [""] * (len(ids) - 1) + ["🙂"]
    speech.push(ids[0])
    assert speech.end() == "\ufffd" and speech.end() == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ended", [True, False])
def test_a_turn_brings_only_what_the_session_does_not_hold(words, kind, template, ended):
    mine = words(kind, template)
    messages = TALK[1:2]
    first = mine.turn(messages)
    assert first.anew and first.ids == mine.prompt(messages)
    said = "It is the sea."
    answer = _spelt_otherwise(mine, said)
    stop = "<|im_end|>" if template == "chatml" else END
    if ended:
        answer.append(mine.tokenizer.token_to_id(stop))
    shown = mine.text(answer, first.whole)
    assert shown.strip() == said
    shown = shown[1:] if template == "mistral" and shown[0] == " " else shown
    messages = [*messages, {"role": "assistant", "content": shown}, TALK[3]]
    second = mine.turn(messages, first, answer)
    fits = mine.rendered(messages).startswith(first.text + mine.text(answer, first.whole))
    assert second.anew is not fits
    if fits:
        assert second.whole == [*first.whole, *answer, *second.ids]
        assert second.ids == mine.prompt(messages)[-len(second.ids) :]
    else:
        assert second.ids == mine.prompt(messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*TEMPLATES, None])
def test_a_session_that_goes_on_holds_the_whole_conversation(words, kind, template):
    """Whatever tokens the answer was spelt with, and whatever was said."""
    mine = words(kind, template)
    vocab, went_on = mine.tokenizer.get_vocab_size(), []
    whole = [id for id in range(5, vocab) if not mine.tokenizer.id_to_token(id).startswith("<0x")]
    answers = st.lists(st.sampled_from(whole), max_size=8)

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=20), answers, st.sampled_from(["", *mine.stops]), st.text(max_size=20))
    def holds(asked, answer, stop, then):
        said = [*answer, stop] if stop != "" else answer
        messages = [{"role": "user", "content": asked}]
        if not mine.rendered(messages):
            return
        first = mine.turn(messages)
        shown = mine.text(said, first.whole)
        messages += [{"role": "assistant", "content": shown}, {"role": "user", "content": then}]
        second = mine.turn(messages, first, said)
        went_on.append(not second.anew)
        if second.anew:
            assert second.ids == second.whole == mine.prompt(messages)
        else:
            assert second.whole == [*first.whole, *said, *second.ids]
            held, fresh = (
                mine.tokenizer.decode(ids, skip_special_tokens=False)
                for ids in (second.whole, mine.prompt(messages))
            )
            assert "".join(held.split()) == "".join(fresh.split())

    holds()
    assert any(went_on)


def test_most_templates_let_a_session_go_on(words):
    """The test above would pass if none ever did."""
    for kind, template in (("bytes", "chatml"), ("bytes", "llama3"), ("metaspace", "mistral")):
        mine = words(kind, template)
        first = mine.turn(TALK[1:2])
        said = " It is." if template == "mistral" else "It is."
        answer = mine.ids("<s>" + said, begin=False)[1:]
        shown = mine.text(answer, first.whole)
        messages = [*TALK[1:2], {"role": "assistant", "content": shown.strip()}, TALK[3]]
        assert not mine.turn(messages, first, answer).anew, template


def test_another_text_an_edited_answer_and_an_end_too_many_begin_anew(words):
    mine = words("bytes", "chatml")
    first = mine.turn(TALK[:2])
    answer = mine.ids("It is.", begin=False)
    more = [{"role": "assistant", "content": "It is."}, TALK[3]]
    assert not mine.turn([*TALK[:2], *more], first, answer).anew
    assert mine.turn([*TALK[1:2], *more], first, answer).anew
    edited = [{"role": "assistant", "content": "It was."}, TALK[3]]
    assert mine.turn([*TALK[:2], *edited], first, answer).anew
    other = [*answer, mine.tokenizer.token_to_id(END)]  # the template closes by another
    assert mine.turn([*TALK[:2], *more], first, other).anew
    assert mine.turn(TALK[:2], first, []).anew  # nothing new: a session cannot answer that


def test_plain_text_goes_on_where_it_was(words):
    mine = words("metaspace")
    first = mine.turn("Once upon a")
    answer = mine.ids("Once upon a time there", begin=False)[len(first.ids) - 1 :]
    second = mine.turn("Once upon a time there was a dog", first, answer)
    assert not second.anew
    assert mine.tokenizer.decode(second.whole) == "Once upon a time there was a dog"
    assert mine.turn("").ids == [mine.tokenizer.token_to_id(BEGIN)]


def test_what_is_wrong_with_words_is_said(words, tmp_path):
    with pytest.raises(PacketError, match="no Unicode"):
        words("bytes").ids("\ud800")
    with pytest.raises(PacketError, match=r"roles must alternate\n.*help:"):
        words("bytes", "mistral").prompt([TALK[2]])
    with pytest.raises(PacketError, match="refuses"):
        words("bytes", "mistral").prompt([])
    with pytest.raises(ModelError, match=r"chat\.jinja"):
        directory(tmp_path / "bad", KINDS["bytes"](), "{% for %}")
        Words(tmp_path / "bad")
    shutil.copytree(words.top / "bytes-None", tmp_path / "changed")
    (tmp_path / "changed" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="sha256"):
        Words(tmp_path / "changed")


@pytest.mark.parametrize("template", [*TEMPLATES, None])
def test_a_stars_words_are_those_of_its_hub(words, tmp_path, template):
    source = None if template is None else TEMPLATES[template]
    mine = Words(star(tmp_path / "in-1", KINDS["metaspace"](), source))
    other = words("metaspace", template)
    assert mine.name == "in-1" and mine.stops == other.stops
    assert mine.prompt(TALK[1:]) == other.prompt(TALK[1:])
    assert mine.turn("Once upon a").ids == other.turn("Once upon a").ids
    assert Words(tmp_path / "in-1", Shards.load(tmp_path / "in-1")).text([9, 30]) == other.text(
        [9, 30]
    )


def test_a_spokes_copy_of_a_star_has_no_words_and_changed_ones_are_refused(tmp_path):
    star(tmp_path / "in-1", KINDS["bytes"](), TEMPLATES["chatml"])
    (tmp_path / "in-1" / "hub" / "chat.jinja").write_text("{{ bos_token }}")
    with pytest.raises(ModelError, match=r"hub/chat\.jinja has sha256"):
        Words(tmp_path / "in-1")
    shutil.rmtree(tmp_path / "in-1" / "hub")
    with pytest.raises(ModelError, match=r"hub/tokenizer\.json is missing"):
        Words(tmp_path / "in-1")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_outside_itself(source):
    with contextlib.suppress(PacketError):
        assert "class" not in Template(source)([])


def _spelt_otherwise(words: Words, text: str) -> list[int]:
    """A token for each character: what a model may choose, and no tokenizer would."""
    letters = [
        ("▁", "Ġ") if letter == " " else (letter, f"<0x{ord(letter):02X}>") for letter in text
    ]
    found = [[words.tokenizer.token_to_id(name) for name in names] for names in letters]
    return [next(id for id in ids if id is not None) for ids in found]
