"""The story model's recipe: its text, its exits, its training that goes on, its counting."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")  # an extra of development alone

from tales import measure, text, training, words
from tales.measure import Draft, Rule
from tales.net import Teller, network
from torch.nn import functional
from transformers import AutoTokenizer

STORY = "One day, a cat sat on a mat. It was a big, red mat. The cat was happy."
PROMPT = [0, 5, 9, 2]


@pytest.fixture(scope="module")
def teller() -> Teller:
    torch.manual_seed(0)
    model = network(300, 0, 1)
    with torch.no_grad():  # larger than at the start, so that answers depend on the text
        for parameter in model.parameters():
            parameter.mul_(3)
    return Teller(model).eval()


@pytest.fixture(scope="module")
def told(teller) -> list[int]:
    return measure.alone(teller, PROMPT)


def test_an_exit_begins_as_a_norm(teller):
    x = torch.randn(2, 5, 192)
    said = teller.exits["4"](x)
    assert torch.equal(said, functional.rms_norm(x, (192,), eps=1e-5))


def test_a_draft_is_what_the_exit_says_beside_all_layers(teller):
    ids = torch.randint(0, 300, (3, 20))
    for after in (2, 4):
        assert torch.allclose(
            teller.draft(ids, after), teller(ids)[after][:, -1], rtol=1e-4, atol=1e-4
        )


def test_a_saved_model_says_the_same_up_to_float16(teller, tmp_path):
    teller.exits["4"].temperature = 0.75
    teller.save(tmp_path)
    once = Teller.load(tmp_path)
    once.save(tmp_path / "again")
    twice = Teller.load(tmp_path / "again")
    ids = torch.randint(0, 300, (1, 20))
    assert all(
        torch.equal(x, y) for x, y in zip(once(ids).values(), twice(ids).values(), strict=True)
    )
    assert torch.allclose(once(ids)[8], teller(ids)[8], rtol=0.05, atol=0.05)
    assert twice.exits["4"].temperature == 0.75


def test_wrong_drafts_cost_requests_but_change_no_word(teller, told):
    def wrong(ids: tuple[int, ...]) -> Draft:
        return Draft((told[min(len(ids), len(told) - 1)] + 1) % 300, 0.5, 0.5)

    said, asked, drafted = measure.speculate(teller, wrong, PROMPT, Rule(4))
    assert said == told
    assert asked == len(told) - len(PROMPT)
    assert drafted > asked


def test_right_drafts_save_all_but_one_request_in_five(teller, told):
    def right(ids: tuple[int, ...]) -> Draft:
        return Draft(told[len(ids)], 0.5, 0.5)

    said, asked, _ = measure.speculate(teller, right, PROMPT, Rule(4))
    assert said == told
    assert asked == -(-(len(told) - len(PROMPT)) // 5)


def test_nothing_is_drafted_below_the_confidence(teller, told):
    def unsure(ids: tuple[int, ...]) -> Draft:
        return Draft(told[len(ids)], 0.3, 0.6)

    new = len(told) - len(PROMPT)
    said, asked, drafted = measure.speculate(teller, unsure, PROMPT, Rule(4, 0.5, False))
    assert (said, asked, drafted) == (told, new, 0)
    assert measure.speculate(teller, unsure, PROMPT, Rule(4, 0.5))[1] < new


@pytest.mark.parametrize("warmth", [0.0, 0.8])
def test_the_exits_own_drafts_change_no_word(teller, warmth):
    told = measure.alone(teller, PROMPT, warmth)
    (cost,) = measure.costs(teller, [told], len(PROMPT), after=4, rules=[Rule(4, warmth=warmth)])
    assert cost.same == 1
    assert cost.new == len(told) - len(PROMPT)


def test_all_layers_tell_what_transformers_would(teller, told):
    made = teller.model.generate(
        torch.tensor([PROMPT]), max_new_tokens=measure.NEW, do_sample=False, pad_token_id=1
    )
    assert made[0].tolist() == told


def test_words_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    drawn = [measure.chosen(logits, place, 1.0)[0] for place in range(2000)]
    shares = torch.tensor(drawn).bincount(minlength=3) / 2000
    assert torch.allclose(shares, logits[0].exp(), atol=0.04)
    assert measure.chosen(logits.repeat(3, 1), 7, 1.0) == drawn[7:10]


def test_training_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "TOKENS", 128)
    monkeypatch.setattr(training, "LENGTHS", ((1.0, 32),))
    stream = torch.randint(0, 300, (2000,), dtype=torch.int16)
    state, kept = tmp_path / "training.pt", []

    def fit(seconds: float) -> Teller:
        torch.manual_seed(0)
        teller = Teller(network(300, 0, 1))
        training.fit(
            teller,
            stream,
            minutes=seconds / 60,
            seed=0,
            state=state,
            eager=True,
            kept=lambda: kept.append(torch.load(state)),
        )
        return teller

    first = fit(0.5).state_dict()
    same = fit(0.5).state_dict()  # nothing is left to do
    assert all(torch.equal(first[name], same[name]) for name in first)
    fit(1.0)
    assert [states["step"] for states in kept] == sorted({states["step"] for states in kept})
    assert len(kept) == 2 and kept[1]["spent"] >= 1.0 > kept[0]["spent"] - 0.5


def test_a_step_sees_the_same_text_again(monkeypatch):
    stream = torch.arange(20000, dtype=torch.int16)
    rows = training.windows(stream, 384, 0, 7)
    assert rows.shape == (16, 384)
    assert torch.equal(rows, training.windows(stream, 384, 0, 7))
    assert not torch.equal(rows, training.windows(stream, 384, 0, 8))
    assert torch.equal(rows.diff(dim=1), torch.ones(16, 383, dtype=torch.long))


def test_only_sound_stories_are_kept():
    sound = " ".join(f"Cat {n} saw dog {n} and sang song {n} twice." for n in range(10))
    assert text.sound(sound)
    assert not text.sound(sound[:200] + ".")
    assert not text.sound(sound[:-1])
    assert text.fresh("a b c d e f") == 1.0
    assert text.fresh("a b c d a b c d a b c d") == 4 / 9
    assert not text.sound("It is a toy. It is not a toy. " * 20 + "The end.")


def test_a_chat_is_one_story(tmp_path):
    made = words.tokenizer([STORY] * 50, tmp_path / "tokenizer.json")
    words.save(made, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "One day,"}, {"role": "assistant", "content": " a cat"}]
    ids = loaded.apply_chat_template(chat, return_dict=False)
    assert ids == made.encode("One day, a cat").ids == loaded("One day, a cat").input_ids
    assert ids[0] == made.token_to_id(words.BEGIN)
    assert made.decode(made.encode(STORY + " Ünïcode\n").ids) == STORY + " Ünïcode\n"


def test_real_stories_come_four_times_between_beginning_and_end(tmp_path):
    made = words.tokenizer([STORY] * 50, tmp_path / "tokenizer.json")
    ids = words.stream(made, [STORY], ["A dog ran."], 0)
    assert (ids == 0).sum() == (ids == 1).sum() == 5
    assert made.decode(ids.tolist()).count("cat was happy") == 4
