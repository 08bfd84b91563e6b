"""minirl/app/chat.py: --system-prompt, --chat-template and --chat-template-kwargs."""

import json
import shutil
from argparse import Namespace

import pytest

from minirl.app.chat import SAID, as_asked, conversing, variables_of
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.lm.chat import Chat
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.tokenizer import build_tokenizer, load_tokenizer

TEMPLATE = ("{{ bos_token }}{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[a]{% if quick %}!{% endif %}{% endif %}")
OTHER = TEMPLATE.replace("[a]", "[you]")
LOOK = ["-n", "1", "--max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture
def tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.templates = {"chat_template.jinja": TEMPLATE}
    return tokenizer


@pytest.fixture(scope="session")
def chat_model(base, tmp_path_factory):
    """The tiny base model as a checkpoint from elsewhere, with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_without_a_template_nothing_changes():
    tokenizer = build_tokenizer()
    for choice in ("auto", "none"):
        assert conversing(tokenizer, chat_template=choice) is tokenizer


def test_a_template_is_used_unless_it_is_refused(tokenizer):
    assert conversing(tokenizer).prompt_text("1+1=") == "<bos>[u]1+1=[a]"
    assert conversing(tokenizer, chat_template="none") is tokenizer
    asked = conversing(tokenizer, "Be brief.", chat_template_kwargs='{"quick": true}')
    assert asked.prompt_text("1+1=") == "<bos>[s]Be brief.[u]1+1=[a]!"
    assert conversing(tokenizer, "").prompt_text("1+1=") == "<bos>[s][u]1+1=[a]"


def test_a_file_takes_the_place_of_the_models_own(tokenizer, tmp_path):
    file = tmp_path / "other.jinja"
    file.write_text(OTHER)
    for own in (tokenizer, build_tokenizer()):
        assert conversing(own, chat_template=str(file)).prompt_text("1") == "<bos>[u]1[you]"


@pytest.mark.parametrize(("template", "flags", "message"), [
    (None, {"system_prompt": "Hi"}, "--system-prompt is given, but the model has no chat template"),
    (None, {"chat_template_kwargs": "{}"}, "--chat-template-kwargs is given, but the model has no"),
    (TEMPLATE, {"system_prompt": "Hi", "chat_template": "none"}, "but --chat-template is none"),
    (TEMPLATE, {"chat_template": "nowhere.jinja"}, "'nowhere.jinja' cannot be read"),
    (TEMPLATE, {"chat_template": ""}, "cannot be read"),
    ("{% if %}", {}, "line 1.*--chat-template none gives prompts as they are"),
    ("{{ raise_exception('no system') }}", {"system_prompt": "Hi"}, "no system"),
    (TEMPLATE, {"chat_template_kwargs": "{"}, "is '{', no JSON"),
    (TEMPLATE, {"chat_template_kwargs": "[1]"}, "is a list: an object such as"),
    (TEMPLATE, {"chat_template_kwargs": '{"tools": []}'}, "tools is no variable"),
])
def test_what_cannot_be(template, flags, message):
    tokenizer = build_tokenizer()
    tokenizer.templates = {} if template is None else {"chat_template.jinja": template}
    with pytest.raises(ValueError, match=message):
        conversing(tokenizer, **flags)


def test_variables():
    assert variables_of(None) == {} == variables_of("{}")
    assert variables_of('{"enable_thinking": false}') == {"enable_thinking": False}
    with pytest.raises(ValueError, match="no JSON"):
        variables_of("[" * 100_000)


def test_a_checkpoint_of_a_run_is_asked_as_it_was_trained(tokenizer, tmp_path):
    """A template that a run was given lies in final/, and the file may be gone by then."""
    def asked(settings, **flags):
        (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
        return as_asked(tokenizer, Namespace(**flags), tmp_path / "final").chat

    run = {"system_prompt": "Brief.", "chat_template": "gone.jinja",
           "chat_template_kwargs": '{"quick": true}'}
    assert asked(run) == Chat("Brief.", {"quick": True})
    assert asked(run, system_prompt="Long.") == Chat("Long.")
    assert asked(run, chat_template="none") is None
    assert asked({**run, "system_prompt": None, "chat_template_kwargs": None,
                  "chat_template": "none"}) is None
    assert asked({}) == Chat() == asked({"chat_template": "auto"})
    assert as_asked(tokenizer, Namespace(), "owner/name").chat == Chat()


def test_a_run_speaks_with_a_chat_model(chat_model, tiny_grpo, tmp_path, monkeypatch, capsys):
    """What samples, what is measured and what final/ holds are of one conversation."""
    read = []
    encode_batch = type(build_tokenizer()).encode_batch
    monkeypatch.setattr("minirl.lm.tokenizer.Tokenizer.encode",
                        lambda self, text: read.append(text) or next(
                            iter(encode_batch(self, [text]))))
    template, run = tmp_path / "other.jinja", tmp_path / "run"
    template.write_text(OTHER)
    assert main(["grpo", "--init", str(chat_model), "--digits", "1", "--run-dir", str(run),
                 "--system-prompt", "Be brief.", "--chat-template", str(template),
                 *tiny_grpo]) == 0
    prompts = [text for text in read if text.endswith("=[you]")]
    assert len(prompts) > 8 and all(p.startswith("<bos>[s]Be brief.[u]") for p in prompts)
    assert SAID in capsys.readouterr().out
    assert load_tokenizer(run / "final").named_templates == {"default": OTHER}
    assert "`" in (run / "samples.md").read_text() and "[you]" not in (
        run / "samples.md").read_text(), "samples.md shows the problem, as ever"
    template.unlink()
    read.clear()
    assert main(["sample", "--init", str(run / "final"), "1+1=", *LOOK]) == 0
    assert "<bos>[s]Be brief.[u]1+1=[you]" in read
    assert SAID in capsys.readouterr().err


def test_a_run_goes_on_with_the_template_that_it_began_with(chat_model, tiny_grpo, tmp_path,
                                                            capsys):
    template, run = tmp_path / "own.jinja", tmp_path / "run"
    template.write_text(OTHER)
    assert main(["grpo", "--init", str(chat_model), "--digits", "1", "--run-dir", str(run),
                 "--chat-template", str(template), *tiny_grpo]) == 0
    shutil.rmtree(run / "final")
    template.write_text(TEMPLATE)
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    assert f"{template}, which --chat-template named, has changed" in capsys.readouterr().err
    template.write_text(OTHER)
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0


def test_a_model_learns_from_demonstrations_as_turns(chat_model, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "1+1=", "completion": "<think></think><answer>2</answer>"}\n')
    run = tmp_path / "run"
    assert main(["sft", "--init", str(chat_model), "--data", str(tmp_path / "pairs.jsonl"),
                 "--run-dir", str(run), "--epochs", "1", "--device", "cpu"]) == 0
    assert RunDir(run).config["settings"]["chat_template"] == "auto"
    _, tokenizer = load_pretrained(run / "final")
    assert tokenizer.named_templates == {"default": TEMPLATE}


def test_a_chat_models_own_prompts_may_be_plain(chat_model, capsys):
    assert main(["sample", "--init", str(chat_model), "1+1=", "--chat-template", "none",
                 *LOOK]) == 0
    assert SAID not in capsys.readouterr().err


def test_eval_asks_in_the_same_form(chat_model, capsys):
    assert main(["eval", "--init", str(chat_model), "--problems", "2", "--samples", "1",
                 "--max-new-tokens", "4", "--device", "cpu", "--digits", "1",
                 "--chat-template-kwargs", '{"quick": true}']) == 0
    assert SAID in capsys.readouterr().err
