"""Chat templates: a conversation as the text that a chat model reads, as transformers renders it.

A conversation is a list of messages, each an object with a role and mostly a content:

    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7="}]

The template comes with the tokenizer: Tokenizer.apply_chat_template. With a `Chat` a tokenizer
takes every prompt for a user's turn, so that what trains, samples and evaluates speaks with a chat
model in the form that it has learnt: Tokenizer.with_chat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minirl.lm.tokenizer_config import TEMPLATE, TokenizerError

Message = Mapping[str, Any]
OWN = ("messages", "tools", "add_generation_prompt", "chat_template")    # what callers do not set
REASONING = ("reasoning_content", "thinking", "reasoning")               # one thing, three names
SCALARS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__, int: int.__int__, float: float.__float__}
SAFE = (3, 1, 6)         # of jinja2: what came before has known ways out of its sandbox


class ChatTemplateError(TokenizerError):
    """A chat template that is missing or broken, or that refuses a conversation."""


@dataclass(frozen=True)
class Chat:
    """The conversation that a prompt becomes: a system's turn, if there is one, and the user's.

    variables   what the template reads beside it, such as {"enable_thinking": False}
    """

    system_prompt: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in OWN:
            if name in self.variables:
                raise ValueError(f"{name} is no variable of a chat template's own: leave it out")

    def messages(self, prompt: str) -> list[Message]:
        """Return the turns before the assistant's. A prompt that has `messages`, as conversations
        in a data set have, is these turns; its own system message comes before the Chat's.

        >>> Chat("Be brief.").messages("6*7=")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '6*7='}]
        """
        messages = list(getattr(prompt, "messages", ()) or [{"role": "user", "content": prompt}])
        if self.system_prompt is None or messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]


def render(template: str, messages: Sequence[Message], *, add_generation_prompt: bool,
           tools: Sequence[Mapping[str, Any]] | None, variables: Mapping[str, Any]) -> str:
    """Return a conversation as a template writes it.

    Raises ChatTemplateError for a template that cannot be read or does not end, for what it
    refuses, and for messages that are not plain data.

    >>> template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    >>> render(template, Chat().messages("6*7="), add_generation_prompt=True, tools=None,
    ...        variables={})
    '[user] 6*7= '
    """
    if not messages:
        raise ChatTemplateError("the conversation is empty: at least one message is wanted")
    rendered = _renderer()
    try:
        return rendered(template, {
            "documents": None, **_plain(variables), "tools": _plain(tools),
            "messages": [_message(message) for message in _plain(messages)],
            "add_generation_prompt": add_generation_prompt})
    except ChatTemplateError:
        raise
    except Exception as error:    # a template is a program: it may raise anything
        line = getattr(error, "lineno", None)
        raise ChatTemplateError(f"the chat template cannot render this conversation ({error}"
                                f"{'' if line is None else f', line {line}'}): give messages or "
                                "variables that it takes, or another template") from error


def _renderer() -> Callable[[str, Mapping[str, Any]], str]:
    try:
        installed = version("jinja2")
        from minirl.lm.template_sandbox import rendered
    except ImportError as error:
        raise ChatTemplateError("chat templates are rendered by jinja2, which is not installed: "
                                "pip install jinja2") from error
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) < SAFE:
        raise ChatTemplateError(f"jinja2 {installed} has known holes in its sandbox, and chat "
                                "templates come from anywhere: pip install -U jinja2")
    return rendered


def _message(message: Any) -> Message:
    """Return a message without the fields that are None, and its reasoning under every name that
    templates read."""
    if not isinstance(message, dict):
        raise ChatTemplateError(f"{message!r:.80} is no message: an object with a role and a "
                                "content is wanted")
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in REASONING if name in fields), None)
    return fields if reasoning is None else {
        "thinking": reasoning, **fields, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Return a copy of JSON-like data: no method of another type is in a template's reach."""
    if value is None or isinstance(value, bool):
        return value
    for kind, copied in SCALARS.items():
        if isinstance(value, kind):
            return copied(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    raise ChatTemplateError(f"{value!r:.80} is a {type(value).__name__}: messages, tools and "
                            "variables are text, numbers, lists and objects")


# which template

def named_templates(files: Mapping[str, str], entry: Any) -> dict[str, str]:
    """Return a tokenizer's templates by name: those of files or, where there are none, of
    tokenizer_config.json's chat_template, which is a text or a list of named ones."""
    if files:
        return {"default" if file == TEMPLATE else Path(file).stem: text
                for file, text in files.items()}
    if entry is None:
        return {}
    entries = [{"name": "default", "template": entry}] if isinstance(entry, str) else entry
    try:
        templates = {one["name"]: one["template"] for one in entries}
    except (TypeError, KeyError, IndexError):
        templates = {None: None}
    if not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise ChatTemplateError(f"tokenizer_config.json: chat_template is {entry!r:.80}: a text, "
                                "or a list of objects with a name and a template, is wanted")
    return templates


def choose(templates: Mapping[str, str], wanted: str | None, *, with_tools: bool) -> str:
    """Return the template of this name, or the text itself; without either the one for tools, if
    there are any, or the default."""
    if wanted is not None:
        return templates.get(wanted, wanted)
    names = (["tool_use"] if with_tools else []) + ["default"]
    for name in names:
        if name in templates:
            return templates[name]
    raise ChatTemplateError("the tokenizer has no chat template: name one" if not templates else
                            f"the tokenizer has the chat templates {', '.join(templates)} and no "
                            "default: name one of them")
