"""minirl/tasks/conversations.py"""

import copy
import pickle

import pytest

from minirl.tasks.conversations import Conversation, prompt_field, with_system

USER, SYSTEM = {"role": "user", "content": "6*7="}, {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "42"}


def test_a_conversation_is_a_text_that_keeps_its_messages():
    prompt = Conversation.of([SYSTEM, USER])
    assert prompt == "Be brief.\n\n6*7=" and hash(prompt) == hash("Be brief.\n\n6*7=")
    for same in (copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert same == prompt and same.messages == (SYSTEM, USER)


def test_what_is_appended_stands_in_the_last_message():
    """An environment adds text to a prompt, and the conversation was lost."""
    prompt = Conversation.of([SYSTEM, USER])
    longer = prompt + " (a hint)"
    assert longer == "Be brief.\n\n6*7= (a hint)"
    assert longer.messages == (SYSTEM, {"role": "user", "content": "6*7= (a hint)"})
    assert prompt + "" is prompt and prompt.messages == (SYSTEM, USER)


def test_a_system_message_stands_in_front_once():
    assert with_system("6*7=", None) == "6*7=" and type(with_system("6*7=", None)) is str
    assert with_system("6*7=", "Be brief.").messages == (SYSTEM, USER)
    assert with_system(Conversation.of([USER, REPLY, USER]), "Be brief.").messages == (
        SYSTEM, USER, REPLY, USER)
    own = Conversation.of([SYSTEM, USER])
    assert with_system(own, "Be long.") is own


def test_prompts():
    assert prompt_field("6*7=", "prompt", "f") == "6*7="
    parts = [{"role": "user", "content": [{"type": "text", "text": "6*"},
                                          {"type": "text", "text": "7="}]}]
    assert prompt_field(parts, "prompt", "f") == "6*7="
    assert prompt_field(parts, "prompt", "f").messages == tuple(parts)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert prompt_field([USER, call, {"role": "tool", "content": "42"}], "prompt", "f") == (
        "6*7=\n\n\n\n42")


@pytest.mark.parametrize("value, says", [
    ([], "f: 'prompt' has no messages"),
    (["6*7="], "message 1 of 'prompt' is '6\\*7='"), ([USER, {"content": "x"}], "message 2 of"),
    ([{"role": "user"}], "'content of message 1' is missing"),
    ([{"role": "user", "content": ""}], "'content of message 1' is missing"),
    ([{"role": "user", "content": 5}], "'content of message 1' is a int"),
    ([{"role": "user", "content": "\ud800"}], "half of a surrogate pair"),
    ([{"role": "user", "content": [{"type": "image"}]}], "has a part of type image"),
    (None, "'prompt' is missing"), (5, "'prompt' is a int"), ({"a": 1}, "'prompt' is a dict")])
def test_what_is_no_prompt(value, says):
    with pytest.raises(ValueError, match=says) as error:
        prompt_field(value, "prompt", "f")
    assert str(error.value).startswith("f: ")
