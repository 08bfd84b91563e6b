"""minirl/train/encoding.py: one BOS, one EOS, and no completion cut off or equal to another."""

import json
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from minirl.lm.chat import Chat
from minirl.lm.tokenizer import EOS, Tokenizer, build_tokenizer, load_tokenizer
from minirl.tasks.preferences import Demonstration, Ranking
from minirl.tasks.steps import Solution
from minirl.train.encoding import (
    encode_demonstrations,
    encode_pairs,
    encode_rankings,
    encode_solutions,
    encode_texts,
    epoch_batch,
)

OURS = build_tokenizer()
BOS_ID, EOS_ID, HI = OURS.bos_id, OURS.eos_id, OURS.encode("hi")
COMPOSED, DECOMPOSED = "사과", unicodedata.normalize("NFD", "사과")


def test_an_epoch_has_every_text_once_and_the_next_one_is_shuffled_anew():
    """Ten texts in batches of four, four and two."""
    batches = [epoch_batch(10, 4, step, seed=0, page="sft") for step in range(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_shuffle_depends_on_seed_and_page():
    batch = epoch_batch(10, 10, 0, seed=0, page="sft")
    assert epoch_batch(10, 10, 0, seed=0, page="sft") == batch
    assert epoch_batch(10, 10, 0, seed=1, page="sft") != batch
    assert epoch_batch(10, 10, 0, seed=0, page="rm") != batch


def test_parts_of_a_completion():
    """The ids are those of the whole text, and each belongs to the policy or to a tool."""
    pairs = [("1=", "ab"), ("1=", ("a", "bc", "d")), ("1=", ("ab",))]
    prompts, completions, own = encode_demonstrations(OURS, pairs, 64)
    whole = [(prompt, "".join(parts)) for prompt, parts in pairs]
    assert (prompts, completions) == encode_pairs(OURS, whole, 64)
    assert own == [[True] * 3, [True, False, False, True, True], [True] * 3]


def test_prompts_are_turns_of_a_chat_and_texts_are_not():
    """What is learnt is what the policy will read: a demonstration's answer stands in the
    assistant's turn, and so do all its parts and steps. A text without a prompt is no turn."""
    chat = OURS.with_chat(Chat("Brief."), "{% for m in messages %}[{{ m.content }}]{% endfor %}:")
    want = OURS.encode("[Brief.][1=]:")
    pairs = [("1=", "ab"), ("1=", ("a", "bc", "d"))]
    prompts, completions, own = encode_demonstrations(chat, pairs, 64)
    assert prompts == [want] * 2 and completions == encode_demonstrations(OURS, pairs, 64)[1]
    assert own[1] == [True, False, False, True, True]
    assert encode_texts(chat, ["hi"], 64) == encode_texts(OURS, ["hi"], 64)
    assert encode_rankings(chat, [Ranking("1=", ("a", "b"))], 64)[0] == [want]
    solution = Solution("1=", ("a,", "b"), (1.0, 1.0))
    assert encode_solutions(chat, [solution], 64) == (
        [want], *encode_solutions(OURS, [solution], 64)[1:])


def test_a_demonstration_that_does_not_fit_is_named_by_its_file():
    with pytest.raises(ValueError, match="data.jsonl, line 3"):
        encode_demonstrations(OURS, [Demonstration("1=", "2" * 99, "data.jsonl, line 3")], 64)


def spaced(tmp_path, merges=()):
    """Return a tokenizer like Llama 2's: it puts a space in front of every text, so that "7" alone
    is "▁7"."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = [*special, "▁", *"0123456789=+abcd", "▁7", *map("".join, merges)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.BPE(ids, [("▁", "7"), *merges], unk_token="<unk>"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(tmp_path)


def tokens(tokenizer, ids):
    return [tokenizer.backend.id_to_token(i) for i in ids]


def test_a_completion_is_tokenised_as_what_follows_its_prompt(tmp_path):
    """Tokenised alone, "7" became "▁7": the page learnt "3+4= 7" from ("3+4=", "7")."""
    tokenizer = spaced(tmp_path)
    prompts, completions = encode_pairs(tokenizer, [("3+4=", "7"), ("3+4=", " 7")], 128)
    assert tokens(tokenizer, prompts[0]) == ["<s>", "▁", "3", "+", "4", "="]
    assert [tokens(tokenizer, ids) for ids in completions] == [["7", "</s>"], ["▁7", "</s>"]]
    ranked = encode_rankings(tokenizer, [Ranking("3+4=", ("7", " 7"))], 128)
    assert ranked == (prompts[:1], [completions])


@pytest.mark.parametrize("prompt, completion, expected", [
    ("3+4", "2=", ["2", "="]),          # "42" is one token, which would cross the boundary
    ("a", "bc", ["b", "c"]),
    ("1a", "b", ["b"]),
    ("d", "ab7", ["ab", "7"]),
])
def test_a_token_that_would_cross_the_boundary_is_split(tmp_path, prompt, completion, expected):
    """The prompt has the ids from which a policy samples, and no character is lost or doubled."""
    tokenizer = spaced(tmp_path, merges=[("4", "2"), ("a", "b")])
    (prompt_ids,), (ids,) = encode_pairs(tokenizer, [(prompt, completion)], 128)
    assert prompt_ids == tokenizer.encode_prompt(prompt)
    assert tokens(tokenizer, ids) == [*expected, "</s>"]
    assert tokenizer.decode(prompt_ids + ids) == f"<s> {prompt}{completion}</s>"


def test_byte_pairs_are_split_at_the_boundary_too():
    tokenizer = build_tokenizer(["abcd"] * 9, vocab_size=266)            # abcd is one token
    (prompt_ids,), (ids,) = encode_pairs(tokenizer, [("xab", "cd")], 128)
    assert prompt_ids == tokenizer.encode_prompt("xab")
    assert tokenizer.decode(ids) == f"cd{EOS}"


@pytest.mark.parametrize("pair", [
    ("<bos>hi", "hi<eos>"),
    ("hi", "hi"),
    Demonstration("hi", "hi<eos>"),
], ids=["with special tokens", "without", "demonstration"])
def test_a_special_token_in_a_pair_is_not_doubled(pair):
    """A chat template's text begins with BOS and ends with EOS, and got both twice."""
    assert encode_pairs(OURS, [pair], 128) == ([[BOS_ID, *HI]], [[*HI, EOS_ID]])


def test_a_special_token_in_a_ranking_is_not_doubled():
    prompts, completions = encode_rankings(OURS, [Ranking("<bos>hi", ("hi<eos>", "h"))], 128)
    assert prompts == [[BOS_ID, *HI]]
    assert completions == [[[*HI, EOS_ID], [HI[0], EOS_ID]]]


def test_a_special_token_in_a_text_is_not_doubled():
    """A text's prompt is its first token, here BOS."""
    encoded = encode_texts(OURS, ["<bos>hi<eos>", "hi"], 128)
    assert encoded == ([[BOS_ID], [BOS_ID]], [[*HI, EOS_ID], [*HI, EOS_ID]])


def test_another_stop_token_at_the_end_stands_for_eos():
    end = OURS.backend.token_to_id("</answer>")
    tokenizer = Tokenizer(OURS.backend, pad=None, bos=None, eos=EOS, stops=[end])
    assert encode_pairs(tokenizer, [("hi", "hi</answer>")], 128) == ([HI], [[*HI, end]])


def test_an_eos_at_the_start_is_not_the_end():
    assert encode_pairs(OURS, [("hi", "<eos>hi")], 128)[1] == [[EOS_ID, *HI, EOS_ID]]


def test_a_tokenizer_may_keep_two_unicode_spellings_apart():
    encode_rankings(OURS, [Ranking("p", (COMPOSED, DECOMPOSED))], 128)


@pytest.mark.parametrize("source, name", [
    ("pairs.jsonl, line 3", "pairs.jsonl, line 3"),
    ("", "the ranking for 'p'"),
])
def test_a_ranking_with_equal_ids_is_an_error_that_names_it(source, name):
    """Korean in two Unicode spellings is two texts, and one for a tokenizer that normalises them:
    the loss of such a pair is log 2 for ever."""
    tokenizer = build_tokenizer()
    tokenizer.backend.normalizer = normalizers.NFC()
    ranking = Ranking("p", ("x", COMPOSED, DECOMPOSED), source)
    with pytest.raises(ValueError, match=f"{name}: completions 2 and 3 are the same 7 tokens"):
        encode_rankings(tokenizer, [ranking], 128)


def test_a_completion_and_the_same_with_its_eos_are_equal():
    with pytest.raises(ValueError, match="1 and 2 are the same 2 tokens"):
        encode_rankings(OURS, [Ranking("p", ("x", "x<eos>"))], 128)


@pytest.mark.parametrize("encode, noun", [
    (encode_pairs, "pair"),
    (encode_texts, "text"),
    (encode_rankings, "ranking"),
])
def test_no_data_is_an_error(encode, noun):
    with pytest.raises(ValueError, match=f"at least one .*{noun}"):
        encode(OURS, [], 128)


@pytest.mark.parametrize("encode, data", [
    (encode_pairs, ("ab", "cd")),
    (encode_texts, "abcd"),
    (encode_rankings, Ranking("ab", ("c", "cd"))),
], ids=["pair", "text", "ranking"])
def test_what_would_lose_its_end_is_an_error(encode, data):
    """BOS, a, b, c, d and EOS are 6 tokens."""
    encode(OURS, [data], 6)
    with pytest.raises(ValueError, match="has 6 tokens, more than the model's context of 5"):
        encode(OURS, [data], 5)
