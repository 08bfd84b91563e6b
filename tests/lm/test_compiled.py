"""minirl/lm/compiled.py: the same numbers with a compiler and without one, and when it pays."""

import warnings

import pytest
import torch
import torch._dynamo.testing

from minirl.lm import compiled as module
from minirl.lm.compiled import compiled, worth_compiling
from minirl.lm.tiny import TinySizes, make_base


def work(x, y, scale):
    return (x * scale + y).exp().sum(-1)


@pytest.fixture(autouse=True)
def unbroken(monkeypatch):
    monkeypatch.setattr(module, "_broken", False)


def failing(error):
    """torch.compile as it behaves where it cannot compile: the first call raises."""
    def compile(function, **options):
        def run(*args):
            raise error
        return run

    return compile


@pytest.fixture
def no_compiler(monkeypatch):
    error = RuntimeError("no working C++ compiler found\nand much more")
    monkeypatch.setattr(torch, "compile", failing(error))


def test_without_a_compiler_the_function_runs_as_it_is_with_one_warning(no_compiler):
    one, other = compiled(work), compiled(work)
    x, y = torch.randn(5, 7), torch.randn(5, 7)
    message = ("torch.compile does not work here .*no working C.. compiler found\\); "
               "going on uncompiled")
    with pytest.warns(RuntimeWarning, match=message):
        got = one(x, y, 0.5)
    assert torch.equal(got, work(x, y, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one(x, y, 0.5), got) and torch.equal(other(x, y, 0.5), got)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_error_of_the_compiler_needs_no_message(monkeypatch, text):
    monkeypatch.setattr(torch, "compile", failing(AssertionError(text)))
    x = torch.ones(2, 3)
    with pytest.warns(RuntimeWarning, match=r"does not work here \(AssertionError\); going on"):
        assert torch.equal(compiled(work)(x, x, 0.5), work(x, x, 0.5))


def test_an_error_of_the_function_is_raised_as_it_is(no_compiler):
    with pytest.raises(ZeroDivisionError):
        compiled(lambda x: 1 / 0)(torch.ones(2))
    assert not module._broken    # and nothing is held against the compiler


def test_the_number_of_rows_may_change_and_a_width_is_compiled_for_itself(monkeypatch):
    """One compilation for all rows, which differ from batch to batch; one more for another model's
    width, as code for unknown widths is slow."""
    count = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options:
                        plain(function, backend=count, **options))
    fast = compiled(work)
    for width in (6, 7):
        for rows in (3, 5, 8, 13):
            x, y = torch.randn(rows, width), torch.randn(rows, width)
            torch.testing.assert_close(fast(x, y, 0.5), work(x, y, 0.5))
    assert count.frame_count == 2
    for graph, width in zip(count.graphs, (6, 7), strict=True):
        inputs = [node.meta["example_value"] for node in graph.graph.nodes
                  if node.op == "placeholder"]
        shapes = [x.shape for x in inputs if isinstance(x, torch.Tensor)]
        assert len(shapes) == 2
        for rows, features in shapes:
            assert isinstance(rows, torch.SymInt)
            assert type(features) is int and features == width


@pytest.mark.parametrize("choice, tokens, want", [
    ("on", 1, True), ("off", 10 ** 12, False), ("auto", 10 ** 6, False), ("auto", 10 ** 10, True)])
def test_compiling_is_decided_from_the_numbers_of_the_run(choice, tokens, want):
    """By its numbers and never by a clock, so that a resumed run computes as the first part did.
    6 * parameters * tokens at 1e11 a second, above 300 s: of 0.27 million parameters 1.8e7 tokens.
    """
    model, _ = make_base(TinySizes(), seed=0, device="cpu")
    assert worth_compiling(choice, model, tokens) is want


def test_an_unknown_choice_to_compile_raises():
    model, _ = make_base(TinySizes(), seed=0, device="cpu")
    with pytest.raises(ValueError, match="compile is 'yes': one of auto, on, off is wanted"):
        worth_compiling("yes", model, 1)
