"""What a tokenizer does beside its vocabulary: what it puts in front of a text, how it splits one.

transformers 5 takes the splitting rules of some classes from the class's name, not from the file.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors


def in_front(backend: tokenizers.Tokenizer) -> list[int]:
    """Return the ids that the tokenizer's post-processor puts in front of a text."""
    probe = backend.encode("a")
    pairs = zip(probe.ids, probe.special_tokens_mask, strict=True)
    return [i for i, _ in takewhile(lambda pair: pair[1], pairs)]


def puts_in_front(backend: tokenizers.Tokenizer,
                  bos_id: int | None) -> processors.TemplateProcessing:
    """Return a post-processor that puts BOS, or nothing, in front of a text."""
    if bos_id is None:
        return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    bos = backend.id_to_token(bos_id)
    return processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"],
                                         special_tokens=[(bos, bos_id)])


def class_name(config: dict, model: dict, file: Path) -> str | None:
    """Return the class that transformers' AutoTokenizer takes, as far as the ids depend on it."""
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = str(name).removesuffix("Fast") if name else None
    if model.get("model_type") == "qwen2" and "auto_map" not in config:
        return "Qwen2Tokenizer"    # whatever is named
    if name is None and model.get("model_type") == "qwen3":
        return "Qwen2Tokenizer"
    if name == "LlamaTokenizer" and '"ByteLevel"' in file.read_text(encoding="utf-8"):
        return None    # Llama 3 names Llama 2's class
    return name


def _like_llama(backend: tokenizers.Tokenizer, config: dict) -> None:
    """Write a space as the letter below, and put one first: once, or after each special token
    too (legacy)."""
    space, prefix = "\u2581", config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(space, prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.model.unk_token, backend.model.fuse_unk, backend.model.byte_fallback = None, True, True


def _like_qwen2(backend: tokenizers.Tokenizer, config: dict) -> None:
    words = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    prefix = config.get("add_prefix_space") is True
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])
    backend.decoder = decoders.ByteLevel()


def _like_gpt2(backend: tokenizers.Tokenizer, config: dict) -> None:
    prefix = config.get("add_prefix_space") is True
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()


# tokenizer_class -> the rules of transformers 5 that replace those of the file.
CLASSES = {"LlamaTokenizer": _like_llama, "Qwen2Tokenizer": _like_qwen2,
           "GPT2Tokenizer": _like_gpt2}


def apply_class(backend: tokenizers.Tokenizer, config: dict, model: dict, file: Path) -> None:
    """Give a tokenizer the rules of the class that its configuration or the model's names."""
    rules = CLASSES.get(class_name(config, model, file) or "")
    if rules is not None and isinstance(backend.model, models.BPE):
        rules(backend, config)


def is_qwen2(backend: tokenizers.Tokenizer) -> bool:
    """Return whether a tokenizer splits texts as Qwen2's does."""
    qwen2 = tokenizers.Tokenizer(models.BPE())
    _like_qwen2(qwen2, {})
    parts = [(t.normalizer, t.pre_tokenizer) for t in (backend, qwen2)]
    return all(a is not None and a.__getstate__() == b.__getstate__()
               for a, b in zip(*parts, strict=True))
