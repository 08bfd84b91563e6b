"""minirl/lm/tokenizer.py: text to ids and back, and the ids that end, pad and begin."""

import json
import random
import unicodedata

import pytest
from tokenizers import processors

from minirl.lm.tokenizer import (
    BOS,
    EOS,
    PAD,
    TAGS,
    Tokenizer,
    TokenizerError,
    build_tokenizer,
    load_tokenizer,
)

DIGITS = [f"{a} + {b} = {a + b} and so the answer is {a + b}."
          for a in range(100, 160) for b in (0, 11, 222, 1000)]
TEXTS = [
    "", " ", "  two  spaces ", "\n\r\n\t", "plain words", "12 + 345 = 357", "안녕하세요, 세계",
    unicodedata.normalize("NFD", "한글 é ñ"), "e\u0301 o\u0308\u0323", "😀👩‍👩‍👧‍👦🇰🇷",
    "a\x00b\x00", "\ufeffbom \u200b\u2028", "\U0010ffff\u0378",
    "<think>2</think><answer>4</answer>", "<pad><bos><eos>", "</think", "<think>" * 3,
    "x<answer> 12 </answer>y", "Ġ Ċ ÿ", "٣٤ ²½ Ⅷ",
    "it's 'n' I'LL",
]


@pytest.fixture(scope="module", params=["bytes", "trained"])
def tokenizer(request):
    if request.param == "bytes":
        return build_tokenizer()
    return build_tokenizer([*DIGITS, *TEXTS], vocab_size=400)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_texts_round_trip(tokenizer):
    rng = random.Random(0)
    # all but the surrogates
    spans = [(0, 128), (0x80, 0x800), (0x800, 0xd800), (0xe000, 0x10000), (0x10000, 0x110000)]

    def character():
        return chr(rng.randrange(*rng.choice(spans)))

    texts = ["".join(character() for _ in range(rng.randrange(40))) for _ in range(300)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@pytest.mark.parametrize("tag", ["<생각>", "<a b>", "<|end|>"])
def test_special_tokens_in_any_script_round_trip(tag):
    tokenizer = build_tokenizer(special_tokens=[tag])
    text = f"x{tag}é"
    ids = tokenizer.encode(text)
    assert len(ids) == 1 + 1 + 2
    assert tokenizer.decode(ids) == tokenizer.decode_completion(ids) == text


def test_a_special_token_that_would_not_round_trip_is_refused():
    """The byte-level decoder takes the letter é for the byte 0xE9, and returns a replacement
    character."""
    with pytest.raises(ValueError, match="réponse.*ASCII"):
        build_tokenizer(special_tokens=["<réponse>"])


def test_every_digit_is_one_id(tokenizer):
    """Merged digits (123 as one token, 124 as two) hide place value: sums become a table to be
    learnt by heart."""
    digit = {d: tokenizer.backend.token_to_id(d) for d in "0123456789"}
    for text in ("1234567890", "100 + 11", "a1b22c", "<answer>357</answer>", "3.14", "-77"):
        ids = tokenizer.encode(text)
        assert [i for i in ids if i in digit.values()] == [digit[c] for c in text if c.isdigit()]
    for i in range(tokenizer.vocab_size):
        assert sum(c.isdigit() for c in tokenizer.token(i)) <= 1


def test_training_merges_what_is_frequent_and_no_more():
    # 7 bytes are one token after 6 merges
    tokenizer = build_tokenizer([" answer"] * 3, vocab_size=263 + 6)
    assert tokenizer.vocab_size == 269 and len(tokenizer.encode(" answer")) == 1
    assert len(build_tokenizer().encode(" answer")) == 7
    assert build_tokenizer().vocab_size == 256 + 3 + len(TAGS)
    assert build_tokenizer(special_tokens=()).vocab_size == 259
    a, b = (build_tokenizer(DIGITS, vocab_size=275).encode_batch(DIGITS) for _ in range(2))
    assert a == b


def test_the_same_ids_are_those_of_all_tokens_and_stops(tokenizer):
    assert tokenizer.same_ids(tokenizer)
    assert not tokenizer.same_ids(build_tokenizer(special_tokens=[*TAGS, "<other>"]))
    more = Tokenizer(tokenizer.backend, pad=PAD, bos=BOS, eos=EOS, stops=[tokenizer.pad_id])
    assert not tokenizer.same_ids(more), "it would read on behind another's last token"


def test_special_ids_are_distinct_and_one_id_each(tokenizer):
    tags = [tokenizer.backend.token_to_id(tag) for tag in TAGS]
    ids = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, *tags]
    assert len(set(ids)) == 7 and tokenizer.stop_ids == [tokenizer.eos_id]
    assert [tokenizer.encode(text) for text in (PAD, BOS, EOS, *TAGS)] == [[i] for i in ids]
    assert [tokenizer.token(i) for i in ids] == [PAD, BOS, EOS, *TAGS]


def test_encode_batch_equals_encode(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == []
    letters = [tokenizer.encode("a"), tokenizer.encode("b")]
    assert tokenizer.encode_batch(iter(["a", "b"])) == letters


def test_encode_adds_nothing_and_encode_prompt_adds_bos(tokenizer):
    assert tokenizer.encode("") == [] and tokenizer.encode_prompt("") == [tokenizer.bos_id]
    assert tokenizer.encode_prompt("2 + 2") == [tokenizer.bos_id, *tokenizer.encode("2 + 2")]


def test_decode_completion_strips_one_stop_token_at_the_end(tokenizer):
    text, eos, decode = "<answer>4</answer>", tokenizer.eos_id, tokenizer.decode_completion
    ids = tokenizer.encode(text)
    assert decode([*ids, eos]) == decode(ids) == text
    assert decode([*ids, eos, eos]) == f"{text}<eos>"
    assert decode([eos, *ids]) == f"<eos>{text}"
    assert decode([*ids, tokenizer.pad_id]) == f"{text}<pad>"
    assert decode([eos]) == decode([]) == ""


def test_half_a_character_reads_as_something(tokenizer):
    byte = tokenizer.encode("😀" + "\U0010ffff")[-1]
    assert tokenizer.token(byte) and isinstance(tokenizer.decode([byte]), str)


# building

@pytest.mark.parametrize("size", [0, 1, 262])
def test_a_vocabulary_too_small_raises(size):
    with pytest.raises(TokenizerError, match=f"vocab_size is {size}: at least 263"):
        build_tokenizer(vocab_size=size)


@pytest.mark.parametrize("special", [["<a>", "<a>"], [EOS], ["<a>", PAD]], ids=str)
def test_special_tokens_given_twice_raise(special):
    with pytest.raises(TokenizerError, match="repeat"):
        build_tokenizer(special_tokens=special)


# saving and loading

def save(folder, *, drop=(), tokenizer_config=None, **files):
    """Save a byte tokenizer, change its tokenizer_config.json, and write JSON files beside it."""
    tokenizer = build_tokenizer()
    tokenizer.save(folder)
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    content = {name: value for name, value in fields.items() if name not in drop}
    file.write_text(json.dumps({**content, **(tokenizer_config or {})}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizer


def test_save_and_load_round_trip(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        for name in ("pad_id", "bos_id", "eos_id", "stop_ids", "vocab_size"):
            assert getattr(loaded, name) == getattr(tokenizer, name)
        assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert [loaded.decode(loaded.encode(text)) for text in TEXTS] == TEXTS


def test_without_a_padding_token_padding_is_eos_and_stays_so(tmp_path):
    tokenizer = save(tmp_path, drop=["pad_token"])
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_id == loaded.eos_id == tokenizer.eos_id
    loaded.save(tmp_path)
    assert load_tokenizer(tmp_path).pad_id == tokenizer.eos_id


def test_a_model_without_bos_gets_none(tmp_path):
    """Qwen was trained without one, and some of its configurations name one all the same: what
    tokenizer.json puts in front of a text is what counts."""
    tokenizer = build_tokenizer()
    tokenizer.bos_id = None
    (tmp_path / "a").mkdir()
    tokenizer.save(tmp_path / "a")
    file = tmp_path / "a" / "tokenizer_config.json"
    assert '"<bos>"' not in file.read_text()
    for options in ({}, {"bos_token": BOS}, {"bos_token": BOS, "add_bos_token": True}):
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, **options}))
        loaded = load_tokenizer(tmp_path / "a")
        assert loaded.bos_id is None and loaded.encode_prompt("ab") == loaded.encode("ab")
        loaded.save(tmp_path)
        assert load_tokenizer(tmp_path).bos_id is None
        # for chat templates
        assert loaded.config.get("bos_token") == options.get("bos_token")


@pytest.mark.parametrize("options", [
    {"drop": ["bos_token"]},
    {"tokenizer_config": {"bos_token": None}},
    {"tokenizer_config": {"add_bos_token": False}},
], ids=str)
def test_bos_stays_where_the_file_adds_it(tmp_path, options):
    """transformers 5 reads `add_bos_token` no more where there is a tokenizer.json."""
    tokenizer = save(tmp_path, **options)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_prompt("ab") == [tokenizer.bos_id, *loaded.encode("ab")]
    loaded.save(tmp_path)
    assert load_tokenizer(tmp_path).bos_id == tokenizer.bos_id


def test_tokens_may_be_written_as_objects(tmp_path):
    objects = {"eos_token": {"content": "</answer>", "lstrip": False},
               "pad_token": {"content": PAD}}
    tokenizer = save(tmp_path, tokenizer_config=objects)
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == tokenizer.backend.token_to_id("</answer>")
    assert loaded.pad_id == tokenizer.pad_id


@pytest.mark.parametrize("files, extra", [
    ({"generation_config": {"eos_token_id": [2, 5]}}, [5]),
    ({"config": {"eos_token_id": 2}}, []),
    ({"config": {"eos_token_id": 6}, "generation_config": {"eos_token_id": [2, 4]}}, [4, 6]),
    ({"config": {"eos_token_id": None}, "generation_config": {}}, []),
], ids=str)
def test_all_stop_ids_are_found(tmp_path, files, extra):
    tokenizer = save(tmp_path, **files)
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == tokenizer.eos_id == 2 and loaded.stop_ids == [2, *extra]
    for i in loaded.stop_ids:
        assert loaded.decode_completion([*loaded.encode("ab"), i]) == "ab"


@pytest.mark.parametrize("eos_token_id", [4, [4]], ids=str)
def test_eos_named_by_number_alone_is_found(tmp_path, eos_token_id):
    save(tmp_path, drop=["eos_token"], config={"eos_token_id": eos_token_id})
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == 4 and loaded.stop_ids == [4]


def test_no_eos_anywhere_raises(tmp_path):
    save(tmp_path, drop=["eos_token"], config={"vocab_size": 300})
    with pytest.raises(TokenizerError, match="names the EOS"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("role", ["eos_token", "pad_token", "bos_token"])
def test_a_named_token_that_the_vocabulary_lacks_raises(tmp_path, role):
    save(tmp_path, tokenizer_config={role: "<nowhere>"})
    with pytest.raises(TokenizerError, match=f"{role[:3].upper()} token '<nowhere>'"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_raises(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing" / "tokenizer.json"):
        with pytest.raises(TokenizerError, match="no tokenizer at"):
            load_tokenizer(path)


@pytest.mark.parametrize("keep", [0, 1, 500])
def test_a_truncated_tokenizer_raises(tmp_path, keep):
    save(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content[:keep])
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content, message", [
    (b'{"eos_token": "<e', "not valid JSON"),
    (b"[]", "holds a list"),
    (b"\xff\xfe", "not valid JSON"),
], ids=str)
def test_a_broken_configuration_raises_and_names_the_file(tmp_path, content, message):
    save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"tokenizer_config.json .*{message}"):
        load_tokenizer(tmp_path)


# nothing is doubled, cut or lost

def test_a_prompt_that_starts_with_bos_gets_no_second_one(tokenizer):
    """The text of a chat template starts with BOS, and got another in front."""
    bos, body = tokenizer.bos_id, tokenizer.encode("hi")
    assert tokenizer.encode_prompt("<bos>hi") == tokenizer.encode_prompt("hi") == [bos, *body]
    assert tokenizer.encode_prompt("<bos>") == tokenizer.encode_prompt("") == [bos]
    assert tokenizer.encode_prompt("<bos><bos>hi") == [bos, bos, *body]
    assert tokenizer.encode_prompts(["<bos>hi", "hi", ""]) == [[bos, *body], [bos, *body], [bos]]


def test_a_tokenizer_made_without_bos_does_not_change_the_one_it_shares(tmp_path):
    tokenizer = build_tokenizer()
    without = Tokenizer(tokenizer.backend, pad=None, bos=None, eos=EOS)
    (tmp_path / "without").mkdir()
    without.save(tmp_path / "without")
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).bos_id == tokenizer.bos_id
    assert load_tokenizer(tmp_path / "without").bos_id is None


def test_an_eos_that_a_file_puts_at_the_end_is_left_out_of_prompts(tmp_path):
    """Nothing can be continued after an EOS."""
    tokenizer = save(tmp_path)
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[(BOS, 1), (EOS, 2)])
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_prompt("ab") == [1, *tokenizer.encode("ab")]


def test_two_tokens_in_front_are_refused(tmp_path):
    tokenizer = save(tmp_path)
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<bos> <think> $A", special_tokens=[(BOS, 1), ("<think>", 3)])
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="puts 2 tokens in front"):
        load_tokenizer(tmp_path)


def test_other_fields_and_chat_templates_survive(tmp_path):
    """A chat model that was trained and saved came back without its template."""
    save(tmp_path, tokenizer_config={"model_max_length": 77, "chat_template": "{{ bos_token }}",
                                     "unk_token": "<think>", "add_bos_token": True})
    (tmp_path / "chat_templates").mkdir()
    files = {"chat_template.jinja": "a\r\n안녕", "chat_templates/tool_use.jinja": "b"}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    loaded = load_tokenizer(tmp_path)
    (tmp_path / "again" / "chat_templates").mkdir(parents=True)
    (tmp_path / "again" / "chat_templates" / "old.jinja").write_text("of another model")
    names = loaded.save(tmp_path / "again")
    assert sorted(names) == sorted([*files, "tokenizer.json", "tokenizer_config.json"])
    assert load_tokenizer(tmp_path / "again").templates == files
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 77 and config["chat_template"] == "{{ bos_token }}"
    assert config["unk_token"] == "<think>" and "add_bos_token" not in config


@pytest.mark.parametrize("text", ["\udcff\udcfe", "a\ud800"], ids=ascii)
def test_text_that_is_not_unicode_is_refused(tokenizer, text):
    """Bytes of the command line that are not UTF-8 become such characters."""
    for encode in (tokenizer.encode, tokenizer.encode_prompt,
                   lambda x: tokenizer.encode_batch(["ok", x])):
        with pytest.raises(TokenizerError, match="half a surrogate pair"):
            encode(text)
    with pytest.raises(TokenizerError, match="None is a NoneType: a text is wanted"):
        tokenizer.encode(None)


def test_a_tokenizer_that_cannot_be_written_says_where(tokenizer, tmp_path):
    """A full disk ended in the library's bare Exception."""
    with pytest.raises(OSError, match="tokenizer.json cannot be written"):
        tokenizer.save(tmp_path / "nowhere")
