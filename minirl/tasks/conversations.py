"""Conversations in TRL's format: lists of messages, each an object with a role and a content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minirl.tasks.records import message_content, text_field
from minirl.tasks.rewards import content_text

Message = Mapping[str, Any]


class Conversation(str):
    """A prompt of several messages. It is the text as which it reads without a chat template, so
    that it can stand wherever a prompt stands; a tokenizer that has a template renders `messages`.

    >>> prompt = Conversation.of([{"role": "system", "content": "Be brief."},
    ...                           {"role": "user", "content": "6*7="}])
    >>> str(prompt), prompt.messages[-1]["role"]
    ('Be brief.\\n\\n6*7=', 'user')
    """

    messages: tuple[Message, ...]

    def __new__(cls, text: str = "", messages: Sequence[Message] = ()) -> Conversation:
        conversation = super().__new__(cls, text)
        conversation.messages = tuple(messages)
        return conversation

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Conversation:
        return cls("\n\n".join(content_text(message.get("content")) for message in messages),
                   messages)

    def __add__(self, text: str, /) -> Conversation:
        """The conversation with text behind its last message."""
        if not text:
            return self
        *before, last = self.messages
        content = content_text(last.get("content")) + text
        return Conversation.of([*before, {**last, "content": content}])


def with_system(prompt: str, system_prompt: str | None) -> str:
    """Return a prompt with a system message in front. A conversation that has one keeps its own."""
    if system_prompt is None:
        return prompt
    user = {"role": "user", "content": prompt}
    messages: Sequence[Message] = getattr(prompt, "messages", (user,))
    if messages[0].get("role") == "system":
        return prompt
    return Conversation.of([{"role": "system", "content": system_prompt}, *messages])


def prompt_field(value: Any, name: str, source: str) -> str:
    """Return the prompt in a field: text, or a Conversation of messages.

    Raises ValueError, with the source, for anything else.
    """
    if not isinstance(value, list):
        return text_field(value, name, source)
    for number, message in enumerate(value, start=1):
        where = f"{source}: message {number} of {name!r}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where} is {message!r:.60}: an object with a role and a content is "
                             "wanted")
        content = message_content(message.get("content"), name, source)
        if content is not None or not message.get("tool_calls"):
            text_field(content or None, f"content of message {number}", source)
    if not value:
        raise ValueError(f"{source}: {name!r} has no messages: one of the user's is wanted, which "
                         "the policy answers")
    return Conversation.of(value)


def completion_field(value: Any, name: str, source: str, *, prompt: str, at: str = "") -> str:
    """Return the completion in a field: text, or a message, in front of which the prompt's may
    stand once more.

    `at` says where in the field the value stands (" at index 2"), for messages.
    """
    if isinstance(value, list) and len(value) > 1 and _same(value[:-1], prompt):
        value = value[-1:]
    return text_field(value, name, source, at=at)


def _same(messages: Sequence[Any], prompt: str) -> bool:
    """Whether messages are those of a prompt, or the one message that it is the text of."""
    if isinstance(prompt, Conversation):
        return tuple(messages) == prompt.messages
    return len(messages) == 1 and isinstance(messages[0], dict) and (
        messages[0].get("content") == prompt)
