"""A tokenizer's ids are those of transformers 5, for files of every make, and after ours is saved.

transformers decides by tokenizer.json, and not by what tokenizer_config.json says, whether a BOS
is added; and for some classes it puts its own splitting rules in the place of the file's.
"""

import itertools
import json

import pytest
import tokenizers
from tokenizers import (AddedToken, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer, load_tokenizer, read_json

transformers = pytest.importorskip("transformers")

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_end|>"]
CORPUS = ["3+4=7 12 + 30 = 42 hello hello, world! we'll see\n\nthe answer is 7\n", "é à 안녕"] * 4
TEXTS = ["hello", "3+4=", "", " ", "  two  spaces", "<s>hello</s>the", "<s>", "x<|im_end|>y </s> z",
         "e\u0301 ?!\nx 1234", "we'll\n\n see", "안녕 😀", "hello<pad>"]
PAIRS = [("3+4=", "7"), ("hello ", "world"), ("12 + 30 =", " 42"), ("the answer", " is 7</s>")]


def byte_level(**options):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    return backend


def digits_apart():
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
    """As in Llama 2: by a pre-tokenizer, or in the older files by normalizers."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = SPECIAL + [f"<0x{i:02X}>" for i in range(256)]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, show_progress=False))
    content = json.loads(trained.to_str())
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


BACKENDS = {"byte": byte_level, "digits": digits_apart, "qwen2": qwen2,
            **{scheme: (lambda scheme=scheme: metaspace(scheme))
               for scheme in ("always", "first", "never", "normalizers")}}
TEMPLATE = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                         special_tokens=[("<s>", 1)])
PROCESSORS = {"none": None, "template": TEMPLATE, "empty": processors.TemplateProcessing(
                  single="$A", pair="$A $B:1", special_tokens=[]),
              "sequence": processors.Sequence([processors.ByteLevel(), TEMPLATE])}


def write(folder, backend, config, model=None):
    """A folder as Hugging Face lays it out: the tokenizer, its configuration and the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        (folder / "config.json").write_text(json.dumps({"vocab_size": 400, **model}))
    return folder


def agree(folder, again):
    """Ours and theirs read `folder` alike, and theirs reads alike what ours saves into `again`."""
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    config = read_json(folder / "config.json")
    again.mkdir(exist_ok=True)
    ours.save(again, model_type=config.get("model_type"))
    if config:
        (again / "config.json").write_text(json.dumps(config))
    saved = transformers.AutoTokenizer.from_pretrained(again)
    for text in TEXTS:
        plain = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == plain == saved.encode(text, add_special_tokens=False), text
        prompt = ours.encode_prompt(text)
        if plain[:1] == [ours.bos_id]:                          # theirs would write a second BOS
            prompt = [ours.bos_id, *prompt]
        assert prompt == theirs.encode(text) == saved.encode(text), text
        assert ours.decode(plain) == saved.decode(plain, clean_up_tokenization_spaces=False)
    prompts, completions = ours.encode_pairs(PAIRS)
    for pair, prompt, completion in zip(PAIRS, prompts, completions):
        assert prompt == theirs.encode(pair[0])
        if theirs.encode(pair[0] + pair[1])[:len(prompt)] == prompt:
            assert prompt + completion == theirs.encode(pair[0] + pair[1])
    reloaded = load_tokenizer(again)
    assert reloaded.encode_prompts(TEXTS) == ours.encode_prompts(TEXTS)
    for name in ("bos_id", "eos_id", "pad_id", "stop_ids"):
        assert getattr(reloaded, name) == getattr(ours, name)
    return ours, theirs, saved


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bos_is_added_where_the_file_adds_it(tmp_path, backend, processor):
    """SmolLM2 names a BOS that its tokenizer never adds, and got one from us; a file that adds it
    without an `add_bos_token` beside it got none; and our own files said nothing at all."""
    made = BACKENDS[backend]()
    if PROCESSORS[processor] is not None:
        made.post_processor = PROCESSORS[processor]
    for i, (bos, add) in enumerate(itertools.product(("<s>", None), (True, False, None, ...))):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>",
                  "bos_token": bos, "add_bos_token": add}
        config = {k: v for k, v in config.items() if v is not ... and (k, v) != ("bos_token", None)}
        ours, _, _ = agree(write(tmp_path / str(i), made, config), tmp_path / f"{i}-saved")
        assert ours.bos_id == (1 if processor in ("template", "sequence") else None)


@pytest.mark.parametrize("model_type", [None, "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", [None, "PreTrainedTokenizerFast", "TokenizersBackend",
                                  "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer",
                                  "Qwen2TokenizerFast", "GPT2Tokenizer"])
def test_a_class_may_stand_for_rules_of_its_own(tmp_path, name, model_type):
    """Under the name LlamaTokenizer, a file whose normalizers put a space at every start gives
    another token behind <s> in transformers 5; under Qwen2Tokenizer, e and an accent become é."""
    if name is None and model_type is None:
        pytest.skip("transformers needs one of the two")
    byte = (model_type == "qwen2" or str(name).startswith(("Qwen2", "GPT2"))
            or (name, model_type) == (None, "qwen3"))           # whose decoders know bytes alone
    backends = ("byte", "digits", "qwen2") if byte else BACKENDS
    for backend in backends:
        made = BACKENDS[backend]()
        made.post_processor = TEMPLATE
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                  "pad_token": "<pad>", "tokenizer_class": name}
        config = {k: v for k, v in config.items() if v is not None}
        model = {"model_type": model_type} if model_type else None
        folder = write(tmp_path / backend, made, config, model)
        agree(folder, tmp_path / f"{backend}-saved")


@pytest.mark.parametrize("legacy", [True, False, None, ...])
@pytest.mark.parametrize("prefix", [True, False, None, ...])
def test_llama_2s_space_in_front(tmp_path, legacy, prefix):
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "legacy": legacy, "add_prefix_space": prefix}
    config = {k: v for k, v in config.items() if v is not ...}
    agree(write(tmp_path / "a", metaspace("normalizers"), config), tmp_path / "b")


def test_truncation_and_padding_left_on_in_the_file_are_off(tmp_path):
    """A file with truncation to 6 cut each prompt to 6 tokens without a word."""
    backend = byte_level()
    backend.enable_truncation(6)
    backend.enable_padding(length=10, pad_id=3, pad_token="<pad>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    ours, theirs, _ = agree(write(tmp_path / "a", backend, config), tmp_path / "b")
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
    """What a configuration names is one token, even where tokenizer.json does not list it."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    ours, theirs, _ = agree(write(tmp_path / "a", byte_level(), config), tmp_path / "b")
    assert ours.eos_id == theirs.eos_token_id
    assert ours.pad_id == (ours.eos_id if theirs.pad_token_id is None else theirs.pad_token_id)
    assert ours.encode("<new>hello world") == theirs.encode("<new>hello world")


def test_tokens_that_an_older_file_names(tmp_path):
    """Files of 2023 name BOS and EOS in special_tokens_map.json, which counts unless the
    configuration lists its tokens."""
    named = {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    for listed in ({}, {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}):
        folder = write(tmp_path / f"a{len(listed)}", byte_level(), {**config, **listed})
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
        ours, theirs, saved = agree(folder, tmp_path / f"b{len(listed)}")
        assert ours.eos_id == theirs.eos_token_id == saved.eos_token_id == (2 if listed else 4)


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
    """A chat model, trained and saved, came back without its template: no chat."""
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
    ours, theirs, saved = agree(folder, tmp_path / "b")
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
def test_ours_is_read_alike_beside_every_model(tmp_path, shape, texts):
    """A saved checkpoint in transformers had no BOS, and logits that differed by 3. Beside a
    model of type qwen2, transformers would take Qwen's splitting rules for our file's."""
    tokenizer = build_tokenizer(texts, vocab_size=320 if texts else None)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, **shape}
    model = Transformer(ModelConfig(tokenizer.vocab_size, **sizes))
    save_pretrained(model, tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)[1]
    for text in ("3+4=", "", "we'll\n\nsee 1234 ?!\n", "e\u0301", "<think>7</think>", *CORPUS):
        assert theirs.encode(text) == ours.encode_prompt(text) == tokenizer.encode_prompt(text)
    assert theirs.encode("3+4=")[0] == tokenizer.bos_id
