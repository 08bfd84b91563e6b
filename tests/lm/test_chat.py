"""minirl/lm/chat.py: conversations as text, and prompts as turns of one."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from minirl.lm import chat
from minirl.lm.chat import Chat, ChatTemplateError, choose, named_templates, render
from minirl.lm.checkpoint import save_pretrained
from minirl.lm.tokenizer import build_tokenizer, load_tokenizer
from tests.lm.models import build_model

CHATML = """{% if tools %}<tools>{{ tools | tojson }}</tools>
{% endif %}
{% for message in messages %}
<|{{ message.role }}|>{{ message.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{% endif %}"""
WITH_BOS = "{{ bos_token }}" + CHATML
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7="}]


def written(template, messages=MESSAGES, add_generation_prompt=True, tools=None, **variables):
    return render(template, messages, add_generation_prompt=add_generation_prompt, tools=tools,
                  variables=variables)


@pytest.fixture
def tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.templates = {"chat_template.jinja": WITH_BOS}
    return tokenizer


# rendering

def test_a_conversation_by_hand():
    assert written("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}") == (
        "system: Be brief.\nuser: 6*7=\n")
    assert written(CHATML, eos_token="</s>") == (
        "<|system|>Be brief.</s>\n<|user|>6*7=</s>\n<|assistant|>")
    assert written(CHATML, add_generation_prompt=False).endswith("6*7=\n")
    assert written(CHATML, enable_thinking=False).endswith("<|assistant|><think></think>")
    assert written(CHATML, tools=[{"name": "a<b"}]).startswith('<tools>[{"name": "a<b"}]</tools>\n')


def test_fields_that_are_none_are_not_there():
    """Clients write `"content": null` beside calls, and the model would read the word None."""
    message = {"role": "user", "content": None, "name": None}
    assert written("{% for m in messages %}{{ m }}{% endfor %}", [message]) == "{'role': 'user'}"


def test_reasoning_has_three_names():
    for name in ("reasoning", "thinking", "reasoning_content"):
        message = {"role": "assistant", "content": "42", name: "6*7"}
        assert written("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}",
                       [message]) == "6*7 6*7"


def test_messages_are_not_changed_and_templates_see_copies():
    message = {"role": "user", "content": ["a"], "reasoning": "b"}
    before = json.dumps(message)
    with pytest.raises(ChatTemplateError):
        written("{{ messages[0].content.append('b') }}", [message])
    assert json.dumps(message) == before


class Text(str):
    def leak(self):
        return "leaked"


def test_templates_see_plain_data_alone():
    """An object's own methods are in a template's reach, and some of them write files."""
    assert written("{{ messages[0].content.leak is defined }}",
                   [{"role": "user", "content": Text("a")}]) == "False"
    with pytest.raises(ChatTemplateError, match="is a object: messages, tools and variables are"):
        written(CHATML, [{"role": "user", "content": object()}])
    with pytest.raises(ChatTemplateError, match="'hello' is no message"):
        written(CHATML, ["hello"])


@pytest.mark.parametrize(("template", "message"), [
    ("{% for m in messages %}", "line 1"),
    ("a\n{{ messages[0 }}", "line 2"),
    ("{{ raise_exception('System role not supported') }}", "System role not supported"),
    ("{{ messages.nothing.at_all }}", "has no attribute 'nothing'"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{% for i in range(90000) %}{% for j in range(90000) %}{{ i }}{% endfor %}{% endfor %}",
     "more than"),
])
def test_what_goes_wrong_in_a_template_is_one_error(template, message):
    with pytest.raises(ChatTemplateError, match=message):
        written(template)


def test_jinja2_is_optional(monkeypatch):
    """PackageNotFoundError is an ImportError."""
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(chat, "version", version)
    with pytest.raises(ValueError, match="jinja2, which is not installed: pip install jinja2"):
        written(CHATML)


def test_nothing_loads_jinja2_before_a_template_is_rendered():
    code = ("import sys, minirl.lm.tokenizer as t; t.build_tokenizer().encode_prompt('1'); "
            "sys.exit('minirl.lm.template_sandbox' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("installed", ["3.1.5", "2.11", "3.1.5rc1"])
def test_an_old_jinja2_is_refused(monkeypatch, installed):
    monkeypatch.setattr(chat, "version", lambda name: installed)
    with pytest.raises(ValueError, match=f"{installed} has known holes .* pip install -U jinja2"):
        written(CHATML)


def test_an_empty_conversation():
    with pytest.raises(ChatTemplateError, match="the conversation is empty"):
        written(CHATML, [])


# which template

NAMED = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]


@pytest.mark.parametrize(("files", "entry", "names"), [
    ({}, None, {}),
    ({}, "a", {"default": "a"}),
    ({}, NAMED, {"default": "a", "tool_use": "b"}),
    ({"chat_template.jinja": "c"}, "a", {"default": "c"}),
    ({"chat_template.jinja": "c", "chat_templates/rag.jinja": "d"}, None,
     {"default": "c", "rag": "d"}),
])
def test_where_templates_stand(files, entry, names):
    assert named_templates(files, entry) == names


@pytest.mark.parametrize("entry", [3, ["a"], [{"name": "default"}], {"name": "a"},
                                   [{"name": "default", "template": 3}]], ids=str)
def test_an_entry_that_is_no_template(entry):
    with pytest.raises(ChatTemplateError, match="chat_template is .*: a text, or a list"):
        named_templates({}, entry)


def test_which_template_is_taken():
    named = named_templates({}, NAMED)
    assert choose(named, None, with_tools=False) == "a"
    assert choose(named, None, with_tools=True) == "b"
    assert choose(named, "tool_use", with_tools=False) == "b"
    assert choose(named, "{{ messages }}", with_tools=False) == "{{ messages }}"
    assert choose({"default": "a"}, None, with_tools=True) == "a"
    with pytest.raises(ChatTemplateError, match="no chat template"):
        choose({}, None, with_tools=False)
    with pytest.raises(ChatTemplateError, match="the chat templates rag and no default"):
        choose({"rag": "a"}, None, with_tools=False)


# a tokenizer with a template

def test_the_tokens_are_variables_and_may_be_replaced(tokenizer):
    text = tokenizer.apply_chat_template(MESSAGES)
    assert text == "<bos><|system|>Be brief.<eos>\n<|user|>6*7=<eos>\n<|assistant|>"
    assert tokenizer.apply_chat_template(MESSAGES, eos_token="</s>").count("</s>") == 2
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="{{ eos_token }}") == "<eos>"


def test_a_bos_that_a_configuration_names_is_a_variable_even_if_no_text_begins_with_it(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.bos_id = None
    tokenizer.config["bos_token"] = "<think>"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="{{ bos_token }}") == "<think>"
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.apply_chat_template(MESSAGES, chat_template="{{ bos_token }}") == "<think>"


def test_without_a_template_there_is_no_chat():
    with pytest.raises(ChatTemplateError, match="no chat template"):
        build_tokenizer().with_chat(Chat())
    assert build_tokenizer().named_templates == {}


def test_a_prompt_is_a_turn(tokenizer):
    asked = tokenizer.with_chat(Chat("Be brief.", {"enable_thinking": False}))
    text = tokenizer.apply_chat_template(MESSAGES, enable_thinking=False)
    assert asked.prompt_text("6*7=") == text and text.endswith("<think></think>")
    assert asked.encode_prompt("6*7=") == tokenizer.encode(text)
    assert asked.encode_prompts(["6*7="]) == [tokenizer.encode(text)]
    assert asked.encode_prompt("6*7=")[:2] != [tokenizer.bos_id] * 2
    assert tokenizer.encode_prompt("6*7=") == asked.plain.encode_prompt("6*7=") == [
        tokenizer.bos_id, *tokenizer.encode("6*7=")]


def test_a_template_without_bos_gets_none(tokenizer):
    """transformers adds nothing to a rendered text; TinyLlama's template writes no BOS."""
    asked = tokenizer.with_chat(Chat(), CHATML)
    assert tokenizer.bos_id not in asked.encode_prompt("6*7=")
    prompts, _ = asked.encode_pairs([("6*7=", "42")])
    assert prompts == [asked.encode_prompt("6*7=")]


def test_tools_are_shown_where_there_is_a_chat(tokenizer):
    asked = tokenizer.with_chat(Chat())
    tools = [{"name": "add"}]
    assert asked.encode_prompt("6*7=", tools) == tokenizer.encode(
        tokenizer.apply_chat_template(MESSAGES[1:], tools=tools))
    assert tokenizer.encode_prompt("6*7=", tools) == tokenizer.encode_prompt("6*7=")


def test_a_completion_continues_the_assistants_turn(tokenizer):
    asked = tokenizer.with_chat(Chat("Be brief."))
    (prompt,), (completion,) = asked.encode_pairs([("6*7=", "42")])
    assert asked.decode([*prompt, *completion]) == asked.prompt_text("6*7=") + "42"
    assert completion == tokenizer.encode("42")


class Turns(str):
    """As conversations of a data set are: text that knows its messages."""

    messages = ({"role": "user", "content": "6*7="}, {"role": "assistant", "content": "41"},
                {"role": "user", "content": "No."})


def test_a_prompt_may_have_several_turns():
    assert Chat("Be brief.").messages(Turns("6*7= 41 No.")) == [MESSAGES[0], *Turns.messages]
    own = Turns("")
    own.messages = ({"role": "system", "content": "Think."}, *Turns.messages)
    assert Chat("Be brief.").messages(own)[0]["content"] == "Think."


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
def test_variables_are_not_arguments(name):
    with pytest.raises(ValueError, match=f"{name} is no variable"):
        Chat(variables={name: []})


def test_a_chat_needs_a_template_that_renders(tokenizer):
    for template in ("{% if %}", "{{ raise_exception('no') }}"):
        with pytest.raises(ChatTemplateError):
            tokenizer.with_chat(Chat(), template)


def test_the_template_is_saved_with_the_model(tokenizer, tmp_path):
    """What was trained with a template of the user's has it when it is loaded."""
    tokenizer.config["chat_template"] = "{{ bos_token }}"
    asked = tokenizer.with_chat(Chat(), CHATML)
    save_pretrained(build_model("untied", vocab_size=tokenizer.vocab_size), asked, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.named_templates == {"default": CHATML} and loaded.chat is None
    assert "chat_template" not in loaded.config
    assert tokenizer.named_templates == {"default": WITH_BOS}
