"""Chat templates and tool schemas: the texts, ids and schemas of transformers.

The templates are those that come with TRL, for the models of the last years, and the tokenizers
Qwen3's and Llama 3.1's, SmolLM2's.
"""

import copy
import enum
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from minirl.inference.tool_use import answer_turns, encode_prompts, replies_of
from minirl.lm.chat import Chat, ChatTemplateError, render
from minirl.lm.tokenizer import load_tokenizer
from minirl.tasks.calls import JSON, Tools
from minirl.tasks.environment import Session
from minirl.tasks.schemas import json_schema
from minirl.tasks.tools import calculate
from tests.parity.real_files import smollm2, tokenizer_files
from tests.parity.trl_stand_ins import NO_TRL

transformers = pytest.importorskip("transformers")
utils = pytest.importorskip("transformers.utils.chat_template_utils")
trl = pytest.importorskip("trl", reason=NO_TRL)
FOLDER = Path(trl.__path__[0]) / "chat_templates"


# tools

class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


def weather(city: str, unit: Unit = Unit.CELSIUS, days: int | None = None) -> dict[str, float]:
    """Say what the weather will be like.

    It is <not> always right: "perhaps" isn't.

    Args:
        city: Which city, such as 서울,
            or Paris.
        unit: What temperatures are measured in.
        days: How many days from now.

    Returns:
        The temperature of each hour.
    """


def plan(steps: list[dict[str, Any]], pair: tuple[int, str], how: Literal["fast", 1, None],
         share: float | int | str, other: list[int] | dict, drink: str, flag: bool = True):
    """Make a plan.

    Args:
        steps: What to do.
        pair: Two things.

        how: In which way.
        share: How much of it.
        other: What else.
        drink: What to drink (choices: ["tea", "coffee"])
        flag: Whether.

    Raises:
        ValueError: Never.
    """


def look():
    """Look around."""


@pytest.mark.parametrize("tool", [weather, plan, look, calculate], ids=lambda f: f.__name__)
def test_schemas(tool):
    """In the same order: templates write the whole schema into the prompt."""
    assert json.dumps(json_schema(tool)) == json.dumps(utils.get_json_schema(tool))


# conversations

CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
    "name": "weather", "arguments": {"city": "서울 <1>", "days": 2}}}]}
CONVERSATIONS = {
    "user": [{"role": "user", "content": "6*7=?"}],
    "system": [{"role": "system", "content": "Be <brief> & 'kind'."},
               {"role": "user", "content": "  안녕하세요\n\n6*7=? "}],
    "turns": [{"role": "user", "content": "6*7="},
              {"role": "assistant", "content": "<think>\nhm\n</think>\n\n42"},
              {"role": "user", "content": "And 7*8?"}],
    "reasoning": [{"role": "user", "content": "6*7="},
                  {"role": "assistant", "reasoning": "six times\n", "content": "42"}],
    "tools": [{"role": "user", "content": "How warm?"}, CALL,
              {"role": "tool", "name": "weather", "content": '{"12": 21.5}'},
              {"role": "tool", "name": "weather", "content": "none"}],
    "after tools": [{"role": "user", "content": "How warm?"}, CALL | {"content": None},
                    {"role": "tool", "name": "weather", "content": "21.5"},
                    {"role": "assistant", "content": "21.5", "reasoning_content": "so"},
                    {"role": "user", "content": "Thanks."}],
}
OPTIONS = [{"add_generation_prompt": prompt, "tools": tools, **more}
           for prompt, tools, more in itertools.product(
               (True, False), (None, [json_schema(weather), json_schema(calculate)]),
               ({}, {"enable_thinking": False}))]


def trl_template(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.jinja")))
def test_templates_of_many_models(name):
    """The texts are equal, or both refuse a conversation."""
    template, tokens, texts = trl_template(name), {"bos_token": "<s>", "eos_token": "</s>"}, set()
    for messages, options in itertools.product(CONVERSATIONS.values(), OPTIONS):
        variables = tokens | options
        own = {name: variables.pop(name) for name in ("add_generation_prompt", "tools")}
        plain = [{k: v for k, v in m.items() if v is not None} for m in messages]
        try:
            (text,), _ = utils.render_jinja_template([plain], chat_template=template, **own,
                                                     **variables)
        except Exception:
            with pytest.raises(ChatTemplateError):
                render(template, messages, **own, variables=variables)
        else:
            assert render(template, messages, **own, variables=variables) == text
            texts.add(text)
    assert texts


@pytest.fixture(scope="module", params=["qwen3", "llama3_1", "llama3_1 with tools", "smollm2"])
def both(request, tmp_path_factory):
    """Our tokenizer and theirs, of one folder; of Llama 3.1 also with a template that knows tools.
    """
    name, _, tools = request.param.partition(" ")
    folder = smollm2() if name == "smollm2" else tokenizer_files(name)
    ours = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if tools:
        theirs.chat_template = trl_template("llama3_1")
        ours = ours.with_chat(Chat(), theirs.chat_template)
    return ours, theirs


def their_text(theirs, messages, **options):
    return theirs.apply_chat_template(copy.deepcopy(messages), tokenize=False, **options)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_texts_and_ids_of_real_tokenizers(both, name):
    ours, theirs = both
    messages, compared = CONVERSATIONS[name], 0
    for options in OPTIONS:
        try:
            text = their_text(theirs, messages, **options)
        except Exception:                            # Llama 3.1's has one call in a turn
            with pytest.raises(ChatTemplateError):
                ours.apply_chat_template(messages, **options)
            continue
        assert ours.apply_chat_template(messages, **options) == text
        ids = theirs.apply_chat_template(messages, return_dict=False, **options)
        assert ours.encode(text) == ids
        compared += 1
    assert compared or name in ("tools", "after tools")


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_are_their_ids(both, system):
    """As policies read them: no second BOS where the template writes one, and none where it does
    not."""
    ours, theirs = both
    chat = ours.with_chat(Chat(system, {"enable_thinking": False}))
    prompts = ["6*7=", "안녕하세요 ", "", "def f():\n    return 1\n"]
    want = [theirs.apply_chat_template(
        [*([] if system is None else [{"role": "system", "content": system}]),
         {"role": "user", "content": prompt}], add_generation_prompt=True, enable_thinking=False,
        return_dict=False) for prompt in prompts]
    assert chat.encode_prompts(prompts) == want
    assert [chat.encode_prompt(prompt) for prompt in prompts] == want
    assert chat.encode_pairs([(prompt, "42") for prompt in prompts]) == (
        want, [theirs.encode("42", add_special_tokens=False)] * len(prompts))
    bos = theirs.convert_tokens_to_ids("<|begin_of_text|>")
    assert all(ids.count(bos) <= 1 for ids in want)


@pytest.mark.parametrize("template", ["qwen3", "qwen2_5", "qwen3_instruct_2507"])
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}], ids=str)
def test_a_conversation_with_tools_is_theirs(template, options):
    """What a policy reads and writes, over three turns, is what their template makes of the whole:
    prompt, two calls, their answers, a third call, its answer."""
    folder = tokenizer_files("qwen3")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = trl_template(template)
    ours = load_tokenizer(folder).with_chat(Chat("Brief.", options), theirs.chat_template)
    answers = iter(["21.5 <ok>", "error: 서울?", "{}"])

    def weather(city: str, days: int = 0) -> str:
        """Say what the weather will be like.

        Args:
            city: Which city.
            days: How many days from now.
        """
        return next(answers)

    session = Session(Tools([weather]), JSON)
    ids, = encode_prompts(ours, ["How warm?"], [session])
    reply, completion = replies_of([session], ours), []
    calls = [[{"city": "서울", "days": 2}, {"city": "Paris"}], [{"city": "<Rome>"}]]
    messages = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "How warm?"}]
    for turn, told in zip(calls, (["21.5 <ok>", "error: 서울?"], ["{}"]), strict=True):
        thought = "" if options or template != "qwen3" else "<think>\nhm\n</think>\n\n"
        completion += ours.encode(thought + "\n".join(
            f'<tool_call>\n{{"name": "weather", "arguments": '
            f'{json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>' for arguments in turn))
        completion += [ours.eos_id]
        completion += reply(0, completion)
        messages += [{"role": "assistant", "content": "", **({"reasoning_content": "hm"}
                                                            if thought else {}),
                      "tool_calls": [{"type": "function", "function": {
                          "name": "weather", "arguments": arguments}} for arguments in turn]},
                     *({"role": "tool", "name": "weather", "content": text} for text in told)]
    want = theirs.apply_chat_template(messages, tools=[weather], add_generation_prompt=True,
                                      return_dict=False, **options)
    if options and template == "qwen3":    # theirs forgets an empty thought of earlier turns
        empty = ours.encode("<think>\n\n</think>\n\n")
        text = ours.decode([*ids, *completion]).replace(ours.decode(empty), "", 2)
        assert text == theirs.decode(want)
    else:
        assert [*ids, *completion] == want
    assert (session.calls, session.failures) == (3, 0)


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3_training", "llama3_1",
                                      "qwen3_instruct_2507"])
def test_turns_of_answers_are_trls(template):
    """What TRL's trainer puts behind a turn with calls. For Qwen3's own template, which writes an
    earlier turn in another way than the last, it takes one of its own; ours needs none."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    folder = tokenizer_files("llama3_1" if template == "llama3_1" else "qwen3")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = trl_template(template)
    answers = ["21.5"] if template == "llama3_1" else ["21.5", "error: 서울?"]
    stand_in = SimpleNamespace(processing_class=theirs, _tokenizer=theirs, _is_vlm=False,
                               chat_template=None, chat_template_kwargs={})
    want = trainer._get_tool_suffix_ids(stand_in, [
        {"role": "tool", "name": "weather", "content": answer} for answer in answers])
    ours = load_tokenizer(folder).with_chat(Chat(), theirs.chat_template)
    assert answer_turns(ours, ["weather"] * len(answers), answers) == want


def test_a_tokenizer_that_we_saved_renders_the_same(both, tmp_path):
    ours, theirs = both
    ours.save(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in (CONVERSATIONS["user"], CONVERSATIONS["turns"]):
        assert their_text(saved, messages) == their_text(theirs, messages)
        assert saved.apply_chat_template(messages, return_dict=False) == (
            theirs.apply_chat_template(messages, return_dict=False))
