"""benchmarks/sanity.py: its toy, its sampler of few bits, its plan, and what its report says."""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from minirl.inference.collect import collect
from minirl.lm.logprobs import rollout_logprobs
from minirl.tasks.user_rollouts import with_rollouts
from tests.benchmark_modules import imported

NAMES = ("sanity", "sanity_report", "sanity_toy", "study")


@pytest.fixture(scope="module")
def modules():
    with imported(*NAMES) as modules:
        yield modules


@pytest.fixture(scope="module")
def sanity(modules):
    return modules["sanity"]


@pytest.fixture(scope="module")
def toy(modules):
    return modules["sanity_toy"]


@pytest.fixture(scope="module")
def report(modules):
    return modules["sanity_report"]


@pytest.fixture(scope="module")
def small(sanity):
    return sanity.Size(length=4, width=32, layers=1, read=64, asked=8, steps=2, prompts=2, lr=1e-3,
                       lrs=(1e-4,), lengths=(2,), widths=(64,))


# ---- the toy

def test_numbers_differ_in_how_many_hard_digits_they_have(toy):
    task = toy.Copies(20)
    problems = task.sample(200, random.Random(0))
    hard = [sum(digit in toy.HARD for digit in problem.answer) for problem in problems]
    assert all(problem.prompt == f"{problem.answer}=" for problem in problems)
    assert {len(problem.answer) for problem in problems} == {20}
    assert min(hard) <= 1 and max(hard) >= 19 and 8 < sum(hard) / 200 < 12
    test = task.sample(50, random.Random(0), split="test")
    assert not {problem.prompt for problem in test} & {problem.prompt for problem in problems}


def test_a_copy_is_right_digit_by_digit(toy):
    assert toy.equal([""] * 4, ["72", "072", "7", "72 "], ["72"] * 4) == [1, 0, 0, 0]


def test_the_base_model_reads_slips_in_hard_digits_alone(toy, monkeypatch):
    read = []
    monkeypatch.setattr(toy, "train_sft", lambda model, tokenizer, pairs, *_, **__: (
        read.extend(pairs), model)[1])
    toy.base_model(toy.Copies(8), 32, 1, 4_000, seed=0, device=torch.device("cpu"))
    pairs = [(a, b) for prompt, completion in read
             for a, b in zip(prompt, completion, strict=False)]     # the prompt ends with "="
    assert all(a == b for a, b in pairs if a in toy.EASY)
    slips = [a != b for a, b in pairs if a in toy.HARD]
    assert sum(slips) / len(slips) == pytest.approx(1 - 0.1 ** (1 / 8), abs=0.01)


# ---- a few bits

def test_rounding_by_hand(toy):
    """Two bits: 1, 1.5, 2, 3, 4. Halfway it is the even one, which ends with 0: 1.25 to 1, 1.75 to
    2."""
    x = torch.tensor([1.2, 1.25, 1.26, 1.75, 2.4, 2.5, -0.6, 0.0, 3.5, float("-inf"), float("inf")])
    wanted = [1, 1, 1.5, 2, 2, 2, -0.5, 0, 4, float("-inf"), float("inf")]
    assert toy.rounded(x, 2).tolist() == wanted


@pytest.mark.parametrize("bits, dtype", [(8, torch.bfloat16), (11, torch.float16)])
def test_rounding_is_torchs_cast(toy, bits, dtype):
    """float16's smaller range does not matter between 2^-14 and 65504."""
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    x = x[x.abs() > 2.0 ** -14]
    assert torch.equal(toy.rounded(x, bits), x.to(dtype).float())
    columns = torch.stack([x[:6], x[6:12]]).T                  # not contiguous
    assert torch.equal(toy.rounded(columns, bits), columns.to(dtype).float())


@pytest.mark.parametrize("product", [
    lambda a, b, c: a @ b,
    lambda a, b, c: torch.addmm(c, a, b),
    lambda a, b, c: c.clone().addmm_(a, b),
    lambda a, b, c: torch.mm(a, b, out=torch.empty(5, 7)),
    lambda a, b, c: torch.bmm(a[None], b[None])[0],
    lambda a, b, c: F.linear(a, b.T)], ids="mm addmm addmm_ out bmm linear".split())
def test_a_product_reads_and_returns_few_bits(toy, product):
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(size, generator=g) for size in ((5, 16), (16, 7), (5, 7)))
    with toy.Coarse(3):
        came = product(a, b, c)
    assert torch.equal(came, toy.rounded(product(*(toy.rounded(x, 3) for x in (a, b, c))), 3))
    assert not torch.equal(came, product(a, b, c))


def test_fused_attention_too(toy):
    x = torch.randn(1, 2, 70, 8, generator=torch.Generator().manual_seed(0))
    with toy.Coarse(3):
        came = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    coarse = toy.rounded(x, 3)
    wanted = F.scaled_dot_product_attention(coarse, coarse, coarse, is_causal=True)
    assert torch.equal(came, toy.rounded(wanted, 3))


def test_the_sampler_is_coarse_and_the_learner_is_not(toy):
    task = toy.Copies(4)
    model, tokenizer = toy.base_model(task, 32, 1, 64, seed=0, device=torch.device("cpu"))
    problems, differences = task.sample(8, random.Random(0)), []
    for its_task in (task, with_rollouts(task, toy.coarse_sampler(8)),
                     with_rollouts(task, toy.coarse_sampler(2))):
        rollouts = collect(model, tokenizer, its_task, problems, max_new_tokens=6,
                           generator=torch.Generator().manual_seed(0)).rollouts
        logp = rollout_logprobs(model, rollouts)
        differences.append(float((logp - rollouts.behavior_logp).abs()[rollouts.mask].mean()))
    assert differences[0] < 1e-5 < 20 * differences[1] < differences[2]


# ---- the plan, and a study in small

def test_the_plan_has_every_run_once_and_the_dtypes_first(sanity, report):
    for size in sanity.SIZES.values():
        plan = sanity.plan(size)
        assert len(set(plan)) == len(plan)
        assert [run.precision for run in plan[:3]] == ["float32", "bfloat16", "float16"]
        assert {run.repair for run in plan} == {repair.name for repair in sanity.REPAIRS}
        assert not [run for run in plan if run.repair == "batch-invariant"
                    and isinstance(run.precision, int)]
        assert {run.precision for run in plan} == set(report.PRECISIONS)
        assert {run.repair for run in plan} == set(report.REPAIRS)


@pytest.mark.parametrize("only", ["float16", "2"])
def test_the_runs_of_one_precision(sanity, modules, small, monkeypatch, tmp_path, only):
    def train(run, base):
        return {**vars(run), "seed": 0, "steps": {"accuracy": [1.0]}, "ended": "", "seconds": 0.0}

    monkeypatch.setattr(sanity, "train", train)
    sanity.one_seed(0, tmp_path / "runs", small, torch.device("cpu"), lambda: True, [only])
    runs = modules["study"].records(tmp_path / "runs")
    assert {str(run["precision"]) for run in runs} == {only}
    missing = {repair.name for repair in sanity.REPAIRS} - {run["repair"] for run in runs}
    assert missing == ({"batch-invariant"} if only == "2" else set())


def test_a_study_goes_on_where_it_was_cut(sanity, modules, report, small, monkeypatch, tmp_path,
                                          capsys):
    """Of the plan there are the dtypes, 2 bits, and one run each of a repair and of other knobs."""
    plan = sanity.plan(small)
    plan = plan[:4] + [next(run for run in plan if run.repair == "batch-invariant"), plan[-1]]
    monkeypatch.setattr(sanity, "plan", lambda size: plan)
    monkeypatch.setattr(sanity, "perfectible_set", partial(sanity.perfectible_set, low=0.0))
    monkeypatch.setattr(sanity, "ASKED_AT_THE_END", 4)
    out, device = tmp_path / "runs", torch.device("cpu")
    left = iter([True, True, False])
    sanity.one_seed(0, out, small, device, lambda: next(left, False))
    first = out.read_text()
    assert len(first.splitlines()) == 2
    sanity.one_seed(0, out, small, device, lambda: True)
    assert out.read_text().startswith(first)
    runs = modules["study"].records(out)
    assert [report.run_of(run) for run in runs] == [report.run_of(vars(run)) for run in plan]
    assert all(len(run["steps"]["accuracy"]) == 2 and not run["ended"] for run in runs)
    single, bfloat, half, two_bits, invariant, _ = (run["steps"]["mismatch"][0] for run in runs)
    assert invariant == 0 < single < half < bfloat < two_bits
    capsys.readouterr()
    report.show(runs, small, sanity.REPAIRS, tmp_path)
    assert capsys.readouterr().out.count("\n| ") >= len(plan)
    assert {file.name for file in tmp_path.iterdir()} == {"runs", "sanity.png",
                                                          "sanity_knobs.png"}


# ---- what the report says

def record(accuracy, ended=""):
    return {"steps": {"accuracy": accuracy}, "ended": ended}


@pytest.mark.parametrize("accuracy, said", [
    ([0.5] * 5 + [0.9, 1, 1, 0.9, 1] + [1] * 10, "passed at 10"),       # 4.8 of 5 steps
    ([0.5] * 20, "stays below"),
    ([0.5] * 4 + [0.8] * 5 + [0.3] * 10, "collapsed"),                  # 0.3 < 0.8 / 2
    ([0.5] * 4 + [0.8] * 5 + [0.5] * 10, "stays below"),
    ([1.0] * 10 + [0.0] * 10, "passed at 5, collapsed"),
])
def test_what_became_of_a_run(report, accuracy, said):
    assert report.outcome(record(accuracy)) == said
    assert report.outcome(record(accuracy, ended="a weight is NaN")).endswith("collapsed")
