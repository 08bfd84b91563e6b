"""Text to ids and back. A thin face over the `tokenizers` library: ids in, ids out, and the ids that have a meaning by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or that lacks what was asked of it."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with its PAD, BOS and EOS.

    `pad_id` may equal `eos_id` (many published checkpoints have no padding token): nothing in the library reads meaning from a padding id.
    `bos_id` is None where the model was trained without one (Qwen). `stop_ids` holds every id that ends a completion.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: str | None, bos: str | None, eos: str, stops: Iterable[int] = ()):
        self.backend = backend
        self.eos_id = self._id(eos, "EOS")
        self.pad_id = self.eos_id if pad is None else self._id(pad, "PAD")
        self.bos_id = None if bos is None else self._id(bos, "BOS")
        self.stop_ids = sorted({self.eos_id, *stops})

    def _id(self, token: str, role: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"the {role} token {token!r} is not in the vocabulary of {self.backend.get_vocab_size()} tokens")
        return found

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Text -> ids, with nothing added at either end."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """encode() of many texts, several times faster than one by one."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_prompt(self, text: str) -> list[int]:
        """Text -> ids with BOS in front, where the model knows a BOS."""
        return ([] if self.bos_id is None else [self.bos_id]) + self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens written out: decode(encode(text)) == text for any text that UTF-8 can hold."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """What a completion says: without the stop token at its end, all other tokens (the tags among them) written out."""
        ids = list(ids)
        return self.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)

    def token(self, i: int) -> str:
        """How one id reads by itself, for tables and traces."""
        return self.backend.decode([i], skip_special_tokens=False) or repr(self.backend.id_to_token(i))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as Hugging Face lays them out."""
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        names = {role: self.backend.id_to_token(i) for role, i in (("pad_token", self.pad_id), ("bos_token", self.bos_id), ("eos_token", self.eos_id))
                 if i is not None}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_tokenizer(texts: Iterable[str] = (), *, vocab_size: int | None = None, special_tokens: Sequence[str] = TAGS) -> Tokenizer:
    """A byte-level tokenizer: PAD, BOS, EOS and the tags are one id each, every digit is one id, and any UTF-8 text round-trips.

    With no `texts`, each byte is a token (256 and the special ones). With `texts`, byte pairs are merged (BPE) until there are `vocab_size`
    tokens; digits are never merged, so that numbers line up in columns.
    """
    special = [PAD, BOS, EOS, *special_tokens]
    if len(set(special)) < len(special):
        raise TokenizerError(f"special_tokens {list(special_tokens)} repeat one another or {PAD}, {BOS}, {EOS}: give each once")
    unsafe = [token for token in special if not token.isascii() and any(ord(c) < 0x180 for c in token if not c.isascii())]
    if unsafe:
        raise TokenizerError(f"special_tokens {unsafe}: the byte-level decoder reads Latin letters with accents as bytes; use ASCII or another script")
    smallest = 256 + len(special)
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(f"vocab_size is {vocab_size}: at least {smallest} is wanted, 256 bytes and {len(special)} special tokens")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size or smallest, special_tokens=[AddedToken(s, special=True, normalized=False) for s in special],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, pad=PAD, bos=BOS, eos=EOS)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a checkpoint folder's tokenizer.json, and its PAD, BOS and EOS from the configuration files beside it.

    Raises TokenizerError if the file is missing or broken, or no file names an EOS. Without a padding token, PAD is EOS.
    """
    folder = Path(path)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.is_file():
        raise TokenizerError(f"no tokenizer at {file}: a folder with a tokenizer.json is wanted, as save_pretrained writes it")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:                                   # the library raises bare Exception
        raise TokenizerError(f"{file} cannot be read as a tokenizer ({error}): it may be cut short; save or download it again") from error
    config = read_json(file.parent / "tokenizer_config.json")
    names = {role: _content(config.get(role)) for role in ("pad_token", "bos_token", "eos_token")}
    stops = []
    for name in ("config.json", "generation_config.json"):       # some checkpoints end on several ids
        ids = read_json(file.parent / name).get("eos_token_id")
        stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
    if names["eos_token"] is None:
        if not stops or backend.id_to_token(stops[-1]) is None:
            raise TokenizerError(f"no file beside {file} names the EOS token: add \"eos_token\" to tokenizer_config.json")
        names["eos_token"] = backend.id_to_token(stops[-1])
    adds_bos = names["bos_token"] is not None and config.get("add_bos_token", True)
    return Tokenizer(backend, pad=names["pad_token"], bos=names["bos_token"] if adds_bos else None, eos=names["eos_token"], stops=stops)


def _content(entry) -> str | None:
    return entry.get("content") if isinstance(entry, dict) else entry


def read_json(path: Path) -> dict:
    """A JSON object from a file; {} where there is none. Raises ValueError, naming the file, where it is broken."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): it may be cut short; restore it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: a JSON object is wanted")
    return content
