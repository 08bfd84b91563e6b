"""What the training pages have in common."""

import ast
import difflib
import inspect
from pathlib import Path

import pytest

from minirl.train import grpo, ppo

PAGES = {name: Path(page.__file__).read_text(encoding="utf-8").splitlines()
         for name, page in (("ppo", ppo), ("grpo", grpo))}
FUNCTIONS = {"ppo": inspect.getsource(ppo.train_ppo).splitlines(),
             "grpo": inspect.getsource(grpo.train_grpo).splitlines()}


def differing(sources):
    """For either page the lines that the other does not have at that place."""
    matcher = difflib.SequenceMatcher(None, *sources.values(), autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    first, second = sources.values()
    return ([line for _, start, end, _, _ in changes for line in first[start:end]],
            [line for _, _, _, start, end in changes for line in second[start:end]])


@pytest.mark.parametrize("sources", [PAGES, FUNCTIONS], ids=["files", "functions"])
def test_ppo_and_grpo_differ_where_the_algorithms_do(sources):
    """`diff ppo.py grpo.py` is a lesson only while every line of it is a difference of the
    algorithms: 138 of 200 lines differed once, by other names for the same things."""
    for lines in differing(sources):
        assert 0 < len(lines) < 100, len(lines)


def test_the_pages_share_their_stages_and_their_loop():
    """What must be the same for a reader who follows both: how a batch is sampled, how log-probs
    are computed, how the loss is aggregated, checked and applied, and what is always reported."""
    shared = set(FUNCTIONS["ppo"]) & set(FUNCTIONS["grpo"])
    text = "\n".join(line.strip() for line in shared)
    for piece in ("# 1. sample", "# 2. score", "# 3. freeze", "# 4. update", "# 5. report",
                  "answers = collect(", "rollouts = answers.rollouts.rows(chosen)",
                  "logp, entropy = token_logprobs(", "surrogate = objective(", "watch(sums",
                  "loss = -aggregate(", "check_finite(loss", "state.backward(loss,",
                  "log(state.step, {**describe(answers)"):
        assert piece in text, piece


def test_options_do_not_make_the_page_of_grpo_longer():
    """Each option of TRL's would be a branch here. They are equations behind a few calls instead:
    200 lines, and 25 names of ours in the loop and before it, as before there were options."""
    tree = ast.parse("\n".join(PAGES["grpo"]))
    ours = {alias.name for node in tree.body
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("minirl.")
            for alias in node.names}
    function, = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    body = {node.id for statement in function.body for node in ast.walk(statement)
            if isinstance(node, ast.Name)}
    assert len(PAGES["grpo"]) <= 200
    assert len(body & ours) <= 25, sorted(body & ours)
