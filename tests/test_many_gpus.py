"""tutorials/many_gpus.md and its Korean twin: the numbers are computed there, the links lead
somewhere, and the snippets that take a reward and a data file elsewhere do what they say."""

import doctest
import json
import re
import sys
from pathlib import Path

import pytest

from minirl.app.cli import build_parser
from minirl.lm import world

FOLDER = Path(__file__).parent.parent / "tutorials"
ENGLISH, KOREAN = FOLDER / "many_gpus.md", FOLDER / "many_gpus.ko.md"
pages = pytest.mark.parametrize("page", [ENGLISH, KOREAN], ids=lambda page: page.name)


def blocks(page, language="python"):
    text = page.read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
            if kind == language]


def prose(page):
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


@pages
def test_the_numbers_are_those_that_the_page_computes(page):
    source = "\n".join(block for block in blocks(page) if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(source, {}, page.name, str(page), 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 40 and result.failed == 0


def anchors(page):
    """What a code host makes of the headings: `#the-machine`."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_to_files_and_headings(page):
    text = prose(page)
    targets = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text)
    assert len(targets) > 12
    for file, anchor in targets:
        path = (FOLDER / file).resolve()
        assert path.is_file(), file
        if anchor:
            assert anchor in anchors(path), f"{file}#{anchor}"
    sources = dict(re.findall(r"(?m)^\[([^\]]+)\]: (http\S+)$", text))
    named = set(re.findall(r"\[([^\]\[]+)\](?![(:])", text))
    assert named == set(sources)


@pages
def test_flags_and_functions_exist(page):
    parser, _ = build_parser()
    text = prose(page)
    for name in re.findall(r"`world\.(\w+)`", text):
        assert hasattr(world, name), name
    usage = next(action for action in parser._actions if action.choices).choices["grpo"]
    known = {option for action in usage._actions for option in action.option_strings}
    flags = {flag for flag in re.findall(r"`(--[\w-]+)", text) if "remote_rm" not in flag}
    assert flags and flags <= known, flags - known
    commands = [line for block in blocks(page, "") for line in
                block.replace("\\\n", " ").splitlines() if "-m minirl" in line]
    for command in commands:
        parser.parse_args(command.split("-m minirl ")[1].split())
    assert commands


def test_the_korean_page_has_the_same_code_tables_and_links():
    assert blocks(KOREAN) == blocks(ENGLISH) and blocks(KOREAN, "") == blocks(ENGLISH, "")
    for pattern in (r"\]\((?!many_gpus)[^)#]+", r"(?m)^#+", r"(?m)^\[.+\]: .+$", r"arXiv:[\d.]+",
                    r"(?m)^\|"):
        korean = prose(KOREAN).replace("README.ko.md", "README.md")
        assert (sorted(re.findall(pattern, korean))
                == sorted(re.findall(pattern, prose(ENGLISH)))), pattern
    hangul = re.findall("[가-힣]", prose(KOREAN))
    assert len(hangul) > 0.15 * len(prose(ENGLISH))


@pytest.fixture
def snippets(monkeypatch):
    """The functions of the last section, by name."""
    monkeypatch.syspath_prepend(FOLDER / "hand_over")
    functions = {}
    for block in blocks(ENGLISH):
        if not block.startswith(">>>"):
            exec(block, functions)                 # of our own page
    return functions


TEXTS, ANSWERS, REWARDS = ["7", "3+4=7", "8"], ["7", "7", "7"], [1.0, 0.5, 0.0]


def test_verl_asks_about_one_completion(snippets):
    verdicts = [snippets["compute_score"](data_source="sums", solution_str=text,
                                          ground_truth=answer, extra_info={})
                for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    assert verdicts == REWARDS


def test_openrlhf_hands_over_prompt_and_completion_as_one_text(snippets):
    prompts = ["<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n"] * 3
    queries = [prompt + text + "<|im_end|>" for prompt, text in zip(prompts, TEXTS, strict=True)]
    assert snippets["reward_func"](queries, prompts, ANSWERS).tolist() == REWARDS


def test_verl_gets_the_same_prompts_and_answers(snippets):
    file = FOLDER / "hand_over" / "problems.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = list(snippets["for_verl"](file))
    assert len(rows) == len(records) == 100
    assert [row["prompt"] for row in rows] == [record["prompt"] for record in records]
    assert ([row["reward_model"]["ground_truth"] for row in rows]
            == [record["answer"] for record in records])


def test_the_example_of_the_reward(snippets):
    """`snippets` has imported it, as `reward`."""
    result = doctest.testmod(sys.modules["reward"])
    assert result.attempted == 3 and result.failed == 0
