"""Chat models at the command line: --system-prompt, --chat-template and --chat-template-kwargs make
every prompt of a task a user's turn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minirl.app.flags import json_object
from minirl.lm.chat import Chat, ChatTemplateError
from minirl.lm.files import read_json
from minirl.lm.text import flag
from minirl.lm.tokenizer import Tokenizer

AUTO, NONE = "auto", "none"
FLAGS = "system_prompt", "chat_template", "chat_template_kwargs"
SAID = ("prompts are user turns of the model's chat template; --chat-template none gives them as "
        "they are")


def conversing(tokenizer: Tokenizer, system_prompt: str | None = None, chat_template: str = AUTO,
               chat_template_kwargs: str | None = None) -> Tokenizer:
    """Return the tokenizer, to which prompts are user turns where it has a chat template, or is
    given one.

    Raises ValueError for a template that is missing or broken, and for flags that only a template
    reads where there is none.
    """
    variables = variables_of(chat_template_kwargs)
    template = None if chat_template in (AUTO, NONE) else read_template(chat_template)
    if chat_template == NONE or template is None and not tokenizer.named_templates:
        why = ("--chat-template is none" if chat_template == NONE else
               "the model has no chat template, and no --chat-template names one")
        for name, value in (("system_prompt", system_prompt),
                            ("chat_template_kwargs", chat_template_kwargs)):
            if value is not None:
                raise ValueError(f"{flag(name)} is given, but {why}: leave it out")
        return tokenizer
    try:
        return tokenizer.with_chat(Chat(system_prompt, variables), template)
    except ChatTemplateError as error:
        raise ValueError(f"{error}; --chat-template none gives prompts as they are") from error


def variables_of(text: str | None) -> dict[str, Any]:
    """Return what --chat-template-kwargs says. Raises ValueError for anything but an object."""
    variables = json_object("chat_template_kwargs", text, '{"enable_thinking": false}')
    Chat(variables=variables)
    return variables


def read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--chat-template {path!r} cannot be read ({error}): a Jinja file in "
                         "UTF-8, auto or none is wanted") from error


def as_asked(tokenizer: Tokenizer, args: argparse.Namespace, path: Path | str) -> Tokenizer:
    """Return a checkpoint's tokenizer as the flags say, or without any as its run was trained. A
    template that the run was given is the checkpoint's own by now."""
    given = {name: getattr(args, name, None) for name in FLAGS}
    if not any(value is not None for value in given.values()):
        settings = read_json(Path(path).parent / "config.json").get("settings", {})
        given = {name: settings.get(name) for name in FLAGS}
        if given["chat_template"] != NONE:
            given["chat_template"] = AUTO
    return conversing(tokenizer, **{name: x for name, x in given.items() if x is not None})
