"""A tokenizer's ids are those of transformers 5 for files of every kind, also after we saved them.

Whether a BOS is added, transformers decides by tokenizer.json, and not by tokenizer_config.json.
For some tokenizer classes it replaces the file's splitting rules by its own.
"""

import itertools
import json
from functools import partial

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.files import read_json
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_end|>"]
CORPUS = ["3+4=7 12 + 30 = 42 hello hello, world! we'll see\n\nthe answer is 7\n", "é à 안녕"] * 4
TEXTS = ["hello", "3+4=", "", " ", "  two  spaces", "<s>hello</s>the", "<s>", "x<|im_end|>y </s> z",
         "e\u0301 ?!\nx 1234", "we'll\n\n see", "안녕 😀", "hello<pad>"]
PAIRS = [("3+4=", "7"), ("hello ", "world"), ("12 + 30 =", " 42"), ("the answer", " is 7</s>")]


def byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    return backend


def split_digits():
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
    return backend


def qwen2():
    backend = byte_level()
    words = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return backend


def metaspace(scheme):
    """A space becomes ▁, as in Llama 2: by a pre-tokenizer, or in older files by normalizers."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = SPECIAL + [f"<0x{i:02X}>" for i in range(256)]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, show_progress=False))
    content = json.loads(backend.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    if scheme == "normalizers":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                         decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return backend


BACKENDS = {
    "byte": byte_level,
    "digits": split_digits,
    "qwen2": qwen2,
    "always": partial(metaspace, "always"),
    "first": partial(metaspace, "first"),
    "never": partial(metaspace, "never"),
    "normalizers": partial(metaspace, "normalizers"),
}
TEMPLATE = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                         special_tokens=[("<s>", 1)])
EMPTY = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
PROCESSORS = {
    "none": None,
    "template": TEMPLATE,
    "empty": EMPTY,
    "sequence": processors.Sequence([processors.ByteLevel(), TEMPLATE]),
}


def without(config, value):
    """Return the entries that do not have this value."""
    return {name: entry for name, entry in config.items() if entry is not value}


def write(folder, backend, config, model=None):
    """Write a folder as Hugging Face does: the tokenizer, its configuration and the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        (folder / "config.json").write_text(json.dumps({"vocab_size": 400, **model}))
    return folder


def assert_agree(folder, again):
    """Ours and theirs give the same ids for `folder`, and theirs for what ours saves to `again`.

    Return our tokenizer, theirs, and theirs of what ours saved.
    """
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    config = read_json(folder / "config.json")
    again.mkdir(exist_ok=True)
    ours.save(again, model_type=config.get("model_type"))
    if config:
        (again / "config.json").write_text(json.dumps(config))
    saved = transformers.AutoTokenizer.from_pretrained(again)
    assert_same_texts(ours, theirs, saved)
    assert_same_pairs(ours, theirs)
    reloaded = load_tokenizer(again)
    assert reloaded.encode_prompts(TEXTS) == ours.encode_prompts(TEXTS)
    for name in ("bos_id", "eos_id", "pad_id", "stop_ids"):
        assert getattr(reloaded, name) == getattr(ours, name)
    return ours, theirs, saved


def assert_same_texts(ours, theirs, saved):
    for text in TEXTS:
        plain = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == plain == saved.encode(text, add_special_tokens=False), text
        prompt = ours.encode_prompt(text)
        if plain[:1] == [ours.bos_id]:                          # theirs adds a second BOS
            prompt = [ours.bos_id, *prompt]
        assert prompt == theirs.encode(text) == saved.encode(text), text
        assert ours.decode(plain) == saved.decode(plain, clean_up_tokenization_spaces=False)


def assert_same_pairs(ours, theirs):
    """Prompt and completion together are the whole text, unless a token crosses the boundary."""
    prompt_ids, completion_ids = ours.encode_pairs(PAIRS)
    for (prompt, completion), ids, after in zip(PAIRS, prompt_ids, completion_ids, strict=True):
        assert ids == theirs.encode(prompt)
        whole = theirs.encode(prompt + completion)
        if whole[:len(ids)] == ids:
            assert ids + after == whole


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bos_is_added_where_the_file_adds_it(tmp_path, backend, processor):
    """SmolLM2 names a BOS that its tokenizer never adds, and we added it; to a file that adds it
    without an `add_bos_token` we added none; and our own files did not say whether to add one."""
    tokenizer = BACKENDS[backend]()
    if PROCESSORS[processor] is not None:
        tokenizer.post_processor = PROCESSORS[processor]
    for i, (bos, add) in enumerate(itertools.product(("<s>", ...), (True, False, None, ...))):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>",
                  "bos_token": bos, "add_bos_token": add}
        folder = write(tmp_path / str(i), tokenizer, without(config, ...))
        ours, _, _ = assert_agree(folder, tmp_path / f"{i}-saved")
        assert ours.bos_id == (1 if processor in ("template", "sequence") else None)


@pytest.mark.parametrize("model_type", [None, "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", [None, "PreTrainedTokenizerFast", "TokenizersBackend",
                                  "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer",
                                  "Qwen2TokenizerFast", "GPT2Tokenizer"])
def test_a_class_may_stand_for_rules_of_its_own(tmp_path, name, model_type):
    """As a LlamaTokenizer, a file whose normalizers put a space in front of every text gives
    another token after <s> in transformers 5; as a Qwen2Tokenizer, e and an accent become é."""
    if name is None and model_type is None:
        pytest.skip("transformers needs one of the two")
    bytes_alone = (model_type == "qwen2" or str(name).startswith(("Qwen2", "GPT2"))
                   or (name, model_type) == (None, "qwen3"))     # what the class's decoder reads
    for backend in ("byte", "digits", "qwen2") if bytes_alone else BACKENDS:
        tokenizer = BACKENDS[backend]()
        tokenizer.post_processor = TEMPLATE
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                  "pad_token": "<pad>", "tokenizer_class": name}
        model = {"model_type": model_type} if model_type else None
        folder = write(tmp_path / backend, tokenizer, without(config, None), model)
        assert_agree(folder, tmp_path / f"{backend}-saved")


@pytest.mark.parametrize("legacy", [True, False, None, ...])
@pytest.mark.parametrize("prefix", [True, False, None, ...])
def test_llama_2s_space_in_front(tmp_path, legacy, prefix):
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "legacy": legacy, "add_prefix_space": prefix}
    folder = write(tmp_path / "a", metaspace("normalizers"), without(config, ...))
    assert_agree(folder, tmp_path / "b")


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    """A file with truncation to 6 tokens silently cut each prompt to 6 tokens."""
    backend = byte_level()
    backend.enable_truncation(6)
    backend.enable_padding(length=10, pad_id=3, pad_token="<pad>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    ours, theirs, _ = assert_agree(write(tmp_path / "a", backend, config), tmp_path / "b")
    assert len(ours.encode("x" * 20)) == len(ours.encode_batch(["x" * 20])[0]) == 20
    assert ours.pad_id == theirs.pad_token_id == 3
    content = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    assert content["truncation"] is content["padding"] is None


@pytest.mark.parametrize("config", [
    {"eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False,
                   "single_word": False, "__type": "AddedToken"}},
    {"eos_token": "</s>", "pad_token": "</s>"},
    {"eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["hello"]},
    {"eos_token": "</s>", "pad_token": "<pad>", "extra_special_tokens": ["<new>", "the"]},
    {"eos_token": "</s>", "unk_token": "world"},
    {"eos_token": "</s>", "split_special_tokens": True},
    {"eos_token": "</s>", "added_tokens_decoder": {"338": {"content": "swer", "special": False}}},
], ids=str)
def test_tokens_that_the_configuration_names(tmp_path, config):
    """Each is one token, even where tokenizer.json does not list it."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    ours, theirs, _ = assert_agree(write(tmp_path / "a", byte_level(), config), tmp_path / "b")
    assert ours.eos_id == theirs.eos_token_id
    assert ours.pad_id == (ours.eos_id if theirs.pad_token_id is None else theirs.pad_token_id)
    assert ours.encode("<new>hello world") == theirs.encode("<new>hello world")


@pytest.mark.parametrize("tokens, eos_id", [
    ({}, 4),
    ({"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}, 2),
], ids=["the map counts", "the configuration counts"])
def test_tokens_that_an_older_file_names(tmp_path, tokens, eos_id):
    """Files of 2023 name BOS and EOS in special_tokens_map.json. It counts unless the
    configuration lists its tokens."""
    special = {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **tokens}
    folder = write(tmp_path / "a", byte_level(), config)
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs, saved = assert_agree(folder, tmp_path / "b")
    assert ours.eos_id == theirs.eos_token_id == saved.eos_token_id == eos_id


MESSAGES = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|im_end|>\r\n{% endfor %}"
TOOLS = PLAIN + "tools"


@pytest.mark.parametrize("config, files", [
    ({"chat_template": PLAIN}, {}),
    ({"chat_template": [{"name": "default", "template": PLAIN},
                        {"name": "tool_use", "template": TOOLS}]}, {}),
    ({}, {"chat_template.jinja": PLAIN}),
    ({"chat_template": TOOLS}, {"chat_template.jinja": PLAIN}),
    ({}, {"chat_template.jinja": PLAIN, "chat_templates/tool_use.jinja": TOOLS}),
], ids=["text", "list", "file", "both", "files"])
def test_chat_templates_survive(tmp_path, config, files):
    """A chat model that was trained and saved had lost its template, so nobody could chat with
    it."""
    pytest.importorskip("jinja2")
    backend = byte_level()
    backend.post_processor = TEMPLATE
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
              "model_max_length": 77, "padding_side": "left", **config}
    folder = write(tmp_path / "a", backend, config)
    (folder / "chat_templates").mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "chat_template.jinja").write_text("of another model")
    ours, theirs, saved = assert_agree(folder, tmp_path / "b")
    assert saved.chat_template == theirs.chat_template is not None
    assert (saved.model_max_length, saved.padding_side) == (77, "left")
    several = isinstance(theirs.chat_template, dict)
    for options in ({}, {"chat_template": "tool_use"} if several else {}):
        text = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
        ids = saved.apply_chat_template(MESSAGES, return_dict=False, **options)
        assert text.startswith("<s>3+4=") and ours.encode_prompt(text) == ids


@pytest.mark.parametrize("shape", [{}, {"qkv_bias": True}, {"qk_norm": True}],
                         ids=["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("texts", [(), CORPUS], ids=["bytes", "merged"])
def test_our_tokenizer_has_the_same_ids_beside_every_model(tmp_path, shape, texts):
    """transformers added no BOS with a checkpoint that we had saved, and its logits differed by 3.
    Beside a model of type qwen2 it would use Qwen's splitting rules in place of our file's."""
    tokenizer = build_tokenizer(texts, vocab_size=320 if texts else None)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, **shape}
    model = Transformer(ModelConfig(tokenizer.vocab_size, **sizes))
    save_pretrained(model, tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)[1]
    for text in ("3+4=", "", "we'll\n\nsee 1234 ?!\n", "e\u0301", "<think>7</think>", *CORPUS):
        assert theirs.encode(text) == ours.encode_prompt(text) == tokenizer.encode_prompt(text)
    assert theirs.encode("3+4=")[0] == tokenizer.bos_id


def test_tags_are_text_to_transformers_and_a_completions_end_is_not(tmp_path):
    """TRL decodes completions without special tokens. The tags were some: the answer stood there
    without its <answer>, and a format reward was 0 for every completion."""
    from minirl.lm.tokenizer import build_tokenizer

    ours = build_tokenizer()
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>3+4</think><answer>7</answer>"
    ids = [*ours.encode(text), ours.eos_id]
    assert theirs.batch_decode([ids], skip_special_tokens=True) == [text]
    assert ours.decode_completion(ids) == text and theirs.encode(text) == ours.encode_prompt(text)
    assert load_tokenizer(tmp_path).encode(text) == ours.encode(text)
