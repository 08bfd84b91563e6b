"""Texts to ids: one text split in two, one BOS, one EOS, and nothing cut off or equal."""

import json
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from minirl.lm.tokenizer import EOS, Tokenizer, build_tokenizer, load_tokenizer
from minirl.tasks.preferences import Demonstration, Ranking
from minirl.train.encoding import encode_pairs, encode_rankings, encode_texts

OURS = build_tokenizer()


def spaced(tmp_path, merges=()):
    """As Llama 2's: a space is put in front of every text, so that "7" alone is "▁7"."""
    letters = ["<unk>", "<s>", "</s>", "▁", *"0123456789=+abcd", "▁7", *map("".join, merges)]
    backend = tokenizers.Tokenizer(models.BPE({x: i for i, x in enumerate(letters)},
                                              [("▁", "7"), *merges], unk_token="<unk>"))
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
    """Alone, "7" became "▁7", and ("3+4=", "7") was trained on as "3+4= 7"."""
    tokenizer = spaced(tmp_path)
    prompts, completions = encode_pairs(tokenizer, [("3+4=", "7"), ("3+4=", " 7")], 128)
    assert tokens(tokenizer, prompts[0]) == ["<s>", "▁", "3", "+", "4", "="]
    assert [tokens(tokenizer, ids) for ids in completions] == [["7", "</s>"], ["▁7", "</s>"]]
    ranked = encode_rankings(tokenizer, [Ranking("3+4=", ("7", " 7"))], 128)
    assert ranked == (prompts[:1], [completions])


@pytest.mark.parametrize("prompt, completion, came", [
    ("3+4", "2=", ["2", "="]),          # "42" is one token: it would reach over the boundary
    ("a", "bc", ["b", "c"]),
    ("1a", "b", ["b"]),
    ("d", "ab7", ["ab", "7"]),
])
def test_a_token_that_would_reach_over_the_boundary_is_split(tmp_path, prompt, completion, came):
    """The prompt keeps the ids that a policy is asked with, and no character is lost or doubled."""
    tokenizer = spaced(tmp_path, merges=[("4", "2"), ("a", "b")])
    (ids,), (after,) = encode_pairs(tokenizer, [(prompt, completion)], 128)
    assert ids == tokenizer.encode_prompt(prompt) and tokens(tokenizer, after) == [*came, "</s>"]
    assert tokenizer.decode(ids + after) == f"<s> {prompt}{completion}</s>"


def test_byte_pairs_are_split_at_the_boundary_too():
    tokenizer = build_tokenizer(["abcd"] * 9, vocab_size=266)            # abcd is one token
    (ids,), (after,) = encode_pairs(tokenizer, [("xab", "cd")], 128)
    assert ids == tokenizer.encode_prompt("xab") and tokenizer.decode(after) == f"cd{EOS}"


def test_a_special_token_in_the_text_is_not_doubled():
    """A chat template's text begins with BOS and ends with EOS, and got both twice."""
    bos, eos, end = OURS.bos_id, OURS.eos_id, OURS.backend.token_to_id("</answer>")
    body = OURS.encode("hi")
    for pair in (("<bos>hi", "hi<eos>"), ("hi", "hi"), Demonstration("hi", "hi<eos>")):
        assert encode_pairs(OURS, [pair], 128) == ([[bos, *body]], [[*body, eos]])
    prompts, completions = encode_rankings(OURS, [Ranking("<bos>hi", ("hi<eos>", "h"))], 128)
    assert prompts == [[bos, *body]] and completions == [[[*body, eos], [body[0], eos]]]
    assert encode_texts(OURS, ["<bos>hi<eos>", "hi"], 128) == ([[bos]] * 2, [[*body, eos]] * 2)
    several = Tokenizer(OURS.backend, pad=None, bos=None, eos=EOS, stops=[end])
    assert encode_pairs(several, [("hi", "hi</answer>")], 128) == ([body], [[*body, end]])
    assert encode_pairs(OURS, [("hi", "<eos>hi")], 128)[1] == [[eos, *body, eos]]


def test_a_ranking_whose_ids_are_equal_is_refused_by_name(tmp_path):
    """Korean in two Unicode spellings is two texts, but under a tokenizer that joins them one:
    such a pair's loss is log 2 for ever."""
    composed, apart = "사과", unicodedata.normalize("NFD", "사과")
    encode_rankings(OURS, [Ranking("p", (composed, apart))], 128)        # ours keeps them apart
    tokenizer = build_tokenizer()
    tokenizer.backend.normalizer = normalizers.NFC()
    for source, name in (("pairs.jsonl, line 3",) * 2, ("", "the ranking for 'p'")):
        ranking = Ranking("p", ("x", composed, apart), source)
        with pytest.raises(ValueError, match=f"{name}: completions 2 and 3 are the same 7 tokens"):
            encode_rankings(tokenizer, [ranking], 128)
    with pytest.raises(ValueError, match="1 and 2 are the same 2 tokens"):
        encode_rankings(tokenizer, [Ranking("p", ("x", "x<eos>"))], 128)


@pytest.mark.parametrize("encode, nothing", [(encode_pairs, "pair"), (encode_texts, "text"),
                                             (encode_rankings, "ranking")])
def test_nothing_raises(encode, nothing):
    with pytest.raises(ValueError, match=f"at least one .*{nothing}"):
        encode(OURS, [], 128)


def test_what_would_lose_its_end_is_named():
    for encode, texts in ((encode_pairs, [("ab", "cd")]), (encode_texts, ["abcd"]),
                          (encode_rankings, [Ranking("ab", ("c", "cd"))])):
        encode(OURS, texts, 6)
        with pytest.raises(ValueError, match="has 6 tokens, more than the model's context of 5"):
            encode(OURS, texts, 5)
