"""Text to ids and back: a thin layer over the `tokenizers` library."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minirl.lm.chat import Chat, Message, choose, named_templates, render
from minirl.lm.digests import verify
from minirl.lm.files import read_json
from minirl.lm.tokenizer_config import (
    REPLACED,
    ROLES,
    TEMPLATE,
    TEMPLATES,
    TokenizerError,
    add_special_tokens,
    chat_templates,
    not_unicode,
    special_token,
    stop_ids,
    token_id,
)
from minirl.lm.tokenizer_rules import apply_class, in_front, is_qwen2, puts_in_front

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Tokenizer:
    """A `tokenizers.Tokenizer` with its PAD, BOS and EOS.

    `bos_id` stands in front of every text. It is None where nothing does, even if a configuration
    names a BOS (Qwen, SmolLM2). `pad_id` may equal `eos_id`, as many published checkpoints have no
    padding token: nothing in the library gives a meaning to a padding id. `stop_ids` are all ids
    that end a completion. `config` holds the fields of tokenizer_config.json, and `templates` the
    chat templates beside it (file name -> text): save() writes both back. With a `chat` every
    prompt is a user's turn.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: str | None, bos: str | None, eos: str,
                 stops: Iterable[int] = (), config: dict | None = None,
                 templates: dict[str, str] | None = None) -> None:
        self.backend = backend
        self.eos_id = token_id(backend, eos, "EOS")
        self.pad_id = self.eos_id if pad is None else token_id(backend, pad, "PAD")
        self.bos_id = None if bos is None else token_id(backend, bos, "BOS")
        self.stop_ids = sorted({self.eos_id, *stops})
        self.config = dict(config or {"clean_up_tokenization_spaces": False})
        self.templates = dict(templates or {})
        self.chat: Chat | None = None

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def special_tokens(self) -> dict[str, str]:
        """The tokens that have a role: "eos_token", ..."""
        ids = {"pad_token": self.pad_id, "bos_token": self.bos_id, "eos_token": self.eos_id}
        return {**{role: self.config[role] for role in ROLES if self.config.get(role) is not None},
                **{role: self.backend.id_to_token(i) for role, i in ids.items() if i is not None}}

    def same_ids(self, other: Tokenizer) -> bool:
        """Whether both have the same tokens under the same ids, and stop at the same ones."""
        return (self.backend.get_vocab() == other.backend.get_vocab()
                and self.stop_ids == other.stop_ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with nothing added at either end."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise TokenizerError(not_unicode([text])) from error

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode many texts, several times faster than one by one."""
        texts = list(texts)
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            raise TokenizerError(not_unicode(texts)) from error
        return [encoding.ids for encoding in encodings]

    # chat templates

    @property
    def named_templates(self) -> dict[str, str]:
        """The chat templates by name: "default", "tool_use", ..."""
        return named_templates(self.templates, self.config.get("chat_template"))

    def apply_chat_template(self, messages: Sequence[Message], *,
                            add_generation_prompt: bool = True,
                            tools: Sequence[Mapping[str, Any]] | None = None,
                            chat_template: str | None = None, **chat_template_kwargs: Any) -> str:
        """Return a conversation as text, as transformers' tokenizer renders it.

        chat_template is a template, or the name of one of the tokenizer's. `tools` are JSON schemas
        (tasks.schemas.json_schema). The text holds its BOS, if the template writes one: encode
        gives the ids of transformers' apply_chat_template.
        """
        template = choose(self.named_templates, chat_template, with_tools=tools is not None)
        return render(template, messages, add_generation_prompt=add_generation_prompt, tools=tools,
                      variables=self.special_tokens | chat_template_kwargs)

    def with_chat(self, chat: Chat | None, template: str | None = None) -> Tokenizer:
        """Return a tokenizer to which every prompt is a user's turn in this conversation; None: to
        which a prompt is what it is. A `template` takes the place of the tokenizer's own.

        Raises ChatTemplateError where there is no template, and for one that cannot render.
        """
        other = copy.copy(self)
        other.chat = chat
        if template is not None:
            other.templates = {TEMPLATE: template}
            other.config = {k: x for k, x in self.config.items() if k != "chat_template"}
        other.prompt_text("1+1=")
        return other

    @property
    def plain(self) -> Tokenizer:
        """The same without a `chat`."""
        return self.with_chat(None)

    def prompt_text(self, prompt: str, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Return what the policy reads of a prompt: with a `chat`, the turns up to where the
        assistant's begins."""
        if self.chat is None:
            return prompt
        return self.apply_chat_template(self.chat.messages(prompt), tools=tools,
                                        **self.chat.variables)

    # prompts

    def encode_prompt(self, prompt: str, tools: Sequence[Mapping[str, Any]] | None = None
                      ) -> list[int]:
        """Return the ids of a prompt, with BOS in front if there is one and the prompt has none.

        transformers' tokenizer gives the same ids, with two exceptions: it puts a second BOS in
        front of a text that starts with one, and where the file says so an EOS at the end, after
        which there is nothing to continue. With a `chat` they are the ids of its
        apply_chat_template: a template writes its BOS itself.
        """
        return self._with_bos(self.encode(self.prompt_text(prompt, tools)))

    def encode_prompts(self, prompts: Iterable[str]) -> list[list[int]]:
        """Encode many prompts."""
        return self._encode_whole(map(self.prompt_text, prompts))

    def _encode_whole(self, texts: Iterable[str]) -> list[list[int]]:
        return [self._with_bos(ids) for ids in self.encode_batch(texts)]

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None or self.chat is not None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]
                     ) -> tuple[list[list[int]], list[list[int]]]:
        """Return the ids of the prompts and those of the completions, of pairs of texts.

        A pair is encoded as one text, as a completion alone may get a space in front (Llama 2). The
        prompt's ids are those of encode_prompt, as when a policy samples, and the completion's are
        what follows them in the ids of the whole. Where a token would reach over the boundary, the
        completion is encoded by itself. So both texts are kept, and the prompt is what the policy
        sees when it samples.
        """
        fronts = [self.prompt_text(prompt) for prompt, _ in pairs]
        prompts = self._encode_whole(fronts)
        wholes = self._encode_whole(front + pair[1]
                                    for front, pair in zip(fronts, pairs, strict=True))
        completions = [
            whole[len(prompt):] if whole[:len(prompt)] == prompt else self._continue(pair[1])
            for pair, prompt, whole in zip(pairs, prompts, wholes, strict=True)]
        return prompts, completions

    def _continue(self, text: str) -> list[int]:
        """Return the ids of a text after another: without the space that some tokenizers add."""
        for before in ("\n", "="):
            front, ids = self.encode(before), self.encode(before + text)
            if ids[:len(front)] == front and self.decode(ids) == before + text:
                return ids[len(front):]
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the special tokens written out.

        With build_tokenizer's tokenizer, decode(encode(text)) == text for any text in UTF-8.
        """
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """Return a completion's text, without the stop token at its end.

        All other special tokens are written out, such as the tags.
        """
        ids = list(ids)
        return self.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)

    def token(self, i: int) -> str:
        """Return the text of a single id, for tables and traces."""
        text = self.backend.decode([i], skip_special_tokens=False)
        return text or repr(self.backend.id_to_token(i))

    def save(self, folder: str | Path, *, model_type: str | None = None) -> list[str]:
        """Write tokenizer.json, tokenizer_config.json and the chat templates; return their names.

        Files of another tokenizer in the folder are deleted. transformers' tokenizer then gives the
        ids of encode_prompt. It takes the file of a model of type "qwen2" for Qwen's own tokenizer,
        unless the configuration has an `auto_map`.
        """
        folder = Path(folder)
        for name in ("special_tokens_map.json", "added_tokens.json", TEMPLATE):
            (folder / name).unlink(missing_ok=True)
        for file in (folder / TEMPLATES).glob("*.jinja"):
            file.unlink()
        processor = self.backend.post_processor
        if in_front(self.backend) != ([] if self.bos_id is None else [self.bos_id]):
            self.backend.post_processor = puts_in_front(self.backend, self.bos_id)
        try:
            self.backend.save(str(folder / "tokenizer.json"))
        except Exception as error:    # the library raises no other class
            raise OSError(f"{folder / 'tokenizer.json'} cannot be written ({error}): "
                          "is there room on the disk?") from error
        finally:
            self.backend.post_processor = processor
        config = {**self.config, "tokenizer_class": "PreTrainedTokenizerFast",
                  **self.special_tokens}
        if model_type == "qwen2" and not is_qwen2(self.backend):
            config["auto_map"] = {"AutoTokenizer": [None, config["tokenizer_class"]]}
        content = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
        for name, text in self.templates.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text.encode())
        return ["tokenizer.json", "tokenizer_config.json", *self.templates]


def build_tokenizer(texts: Iterable[str] = (), *, vocab_size: int | None = None,
                    special_tokens: Sequence[str] = TAGS) -> Tokenizer:
    """Return a byte-level tokenizer, which encodes any text in UTF-8.

    PAD, BOS, EOS and the tags are one id each; the tags are part of a text, the other three are
    not. Without `texts` each byte is a token, 256 beside the special ones. With `texts`, byte pairs
    are merged (BPE) until there are `vocab_size` tokens; digits are never merged, so that numbers
    line up in columns.
    """
    special = [PAD, BOS, EOS, *special_tokens]
    if len(set(special)) < len(special):
        raise TokenizerError(f"special_tokens {list(special_tokens)} repeat one another or {PAD}, "
                             f"{BOS}, {EOS}: give each once")
    unsafe = [token for token in special if any(0x80 <= ord(c) < 0x180 for c in token)]
    if unsafe:
        raise TokenizerError(f"special_tokens {unsafe}: the byte-level decoder reads Latin letters "
                             "with accents as bytes; use ASCII or another script")
    smallest = 256 + len(special)
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(f"vocab_size is {vocab_size}: at least {smallest} is wanted, 256 "
                             f"bytes and {len(special)} special tokens")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or smallest, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[special_token(text) for text in special],
        show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(_plain_tags(backend), pad=PAD, bos=BOS, eos=EOS)


def _plain_tags(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return the same tokenizer, in which no token is special but PAD, BOS and EOS.

    Training marks them all, and transformers and TRL leave special tokens out of a completion's
    text: a reward would find no <answer> there. Published models write their tags likewise.
    """
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in (PAD, BOS, EOS)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a checkpoint folder's tokenizer.json, and what the configuration files beside it say.

    It gives the ids that transformers 5 gives. BOS is what tokenizer.json itself puts in front of a
    text: `add_bos_token` is ignored, and a BOS that is only named is not added. Truncation and
    padding that the file has are switched off. Some classes stand for splitting rules that replace
    those of the file: see tokenizer_rules.py. Without a padding token, PAD is EOS.

    Raises TokenizerError if the file is missing or broken, or if no file names an EOS.
    """
    folder = Path(path)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    folder = file.parent
    if not file.is_file():
        raise TokenizerError(f"no tokenizer at {file}: a folder with a tokenizer.json is wanted, "
                             "as save_pretrained writes it")
    templates = chat_templates(folder)
    verify(folder, file.name, "tokenizer_config.json", *templates)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:    # the library raises no other class
        raise TokenizerError(f"{file} cannot be read as a tokenizer ({error}): it may be cut "
                             "short; save or download it again") from error
    config = read_json(folder / "tokenizer_config.json")
    model = read_json(folder / "config.json")
    apply_class(backend, config, model, file)
    backend.encode_special_tokens = config.get("split_special_tokens") is True
    names = add_special_tokens(backend, config, folder)

    generation = folder / "generation_config.json"
    stops = [*stop_ids(model, folder / "config.json"),    # some checkpoints end on several ids
             *stop_ids(read_json(generation), generation)]
    if "eos_token" not in names:
        eos = backend.id_to_token(stops[-1]) if stops else None
        if eos is None:
            raise TokenizerError(f"no file beside {file} names the EOS token: add \"eos_token\" to "
                                 "tokenizer_config.json")
        names["eos_token"] = eos
    front = in_front(backend)
    if len(front) > 1:
        raise TokenizerError(f"{file} puts {len(front)} tokens in front of a text: one, BOS, or "
                             "none is wanted")
    bos = backend.id_to_token(front[0]) if front else None
    fields = {name: value for name, value in config.items() if name not in REPLACED} | names
    return Tokenizer(backend, pad=names.get("pad_token"), bos=bos, eos=names["eos_token"],
                     stops=stops, config=fields, templates=templates)
