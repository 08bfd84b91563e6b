"""What the files beside a tokenizer.json say: special tokens, stop ids and chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from minirl.lm.files import read_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TEMPLATE, TEMPLATES = "chat_template.jinja", "chat_templates"
# Fields that save() writes anew, or whose content is in tokenizer.json by then.
REPLACED = {"tokenizer_class", "auto_map", "add_bos_token", "add_eos_token", "added_tokens_decoder",
            "additional_special_tokens", "extra_special_tokens", "tokenizer_file", "name_or_path"}


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or that lacks what it was asked for."""


def special_token(text: str) -> AddedToken:
    """Return a token that is one id wherever its text stands."""
    return AddedToken(text, special=True, normalized=False)


def special_tokens(config: dict, folder: Path) -> tuple[dict[str, str], list[AddedToken]]:
    """Return the tokens that tokenizer_config.json names: by role, and others of one id each."""
    where = folder / "tokenizer_config.json"
    tokens = config.get("added_tokens_decoder")
    if tokens is None:    # older checkpoints name them in a file of their own
        config = {**config, **read_json(folder / "special_tokens_map.json")}
    names = {role: _token(config[role], f"{where}: {role}").content
             for role in ROLES if config.get(role) is not None}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    tokens = {} if tokens is None else tokens
    if not isinstance(tokens, dict) or not isinstance(extra, (dict, list)):
        raise TokenizerError(f"{where}: added_tokens_decoder is an object and extra_special_tokens "
                             f"a list, not {type(tokens).__name__} and {type(extra).__name__}")
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    return names, [*(_token(entry, f"{where}: added_tokens_decoder") for entry in tokens.values()),
                   *(_token(entry, f"{where}: extra_special_tokens") for entry in extra)]


def _token(entry: object, where: str) -> AddedToken:
    if isinstance(entry, str):
        return special_token(entry)
    if isinstance(entry, dict) and isinstance(entry.get("content"), str):
        flags = {name: flag for name, flag in entry.items() if name in FLAGS}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(entry["content"], **flags)
    raise TokenizerError(f"{where} is {entry!r:.80}: a token's text, or an object with its "
                         "\"content\", is wanted")


def add_special_tokens(backend: Tokenizer, config: dict, folder: Path) -> dict[str, str]:
    """Add the tokens that tokenizer_config.json names; return those that have a role, by role."""
    names, others = special_tokens(config, folder)
    if backend.padding is not None:
        names.setdefault("pad_token", backend.padding["pad_token"])
    backend.no_truncation()
    backend.no_padding()
    own = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in others if token.content not in own])
    for role in names.keys() & {"pad_token", "bos_token", "eos_token"}:
        token_id(backend, names[role], role[:3].upper())
    backend.add_special_tokens([special_token(name) for name in names.values()
                                if name not in own])
    return names


def token_id(backend: Tokenizer, token: str, role: str) -> int:
    """Return the id of a token that must be in the vocabulary."""
    number = backend.token_to_id(token)
    if number is None:
        raise TokenizerError(f"the {role} token {token!r} is not in the vocabulary of "
                             f"{backend.get_vocab_size()} tokens")
    return number


def not_unicode(texts: Sequence[object]) -> str:
    """Return why texts cannot be encoded."""
    for text in texts:
        if not isinstance(text, str):
            return f"{text!r:.80} is a {type(text).__name__}: a text is wanted"
        if any("\ud800" <= c <= "\udfff" for c in text):
            return f"{text[:40]!r} holds half a surrogate pair, not Unicode: read it as UTF-8"
    return "these texts cannot be encoded"


def stop_ids(config: dict, file: Path) -> list[int]:
    """Return the ids of a configuration's `eos_token_id`: one, several or none."""
    ids = config.get("eos_token_id")
    if not isinstance(ids, list):
        ids = [] if ids is None else [ids]
    if not all(type(i) is int and 0 <= i < 2 ** 32 for i in ids):
        raise TokenizerError(f"{file}: eos_token_id is {config['eos_token_id']!r:.80}: an id, a "
                             "list of ids or null is wanted")
    return ids


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a folder: file name -> text."""
    files = [folder / TEMPLATE, *sorted((folder / TEMPLATES).glob("*.jinja"))]
    try:
        return {str(file.relative_to(folder)): file.read_bytes().decode()
                for file in files if file.is_file()}
    except UnicodeDecodeError as error:
        raise TokenizerError(f"a chat template in {folder} is not UTF-8 text ({error}): save or "
                             "download it again") from error
