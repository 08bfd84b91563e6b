"""The repetition penalty of minirl/lm/choice.py, in every way in which rows grow."""

import pytest
import torch
import torch._dynamo.testing

from minirl.lm import sampling
from minirl.lm.branches import Branches
from minirl.lm.checkpoint import save_pretrained
from minirl.lm.choice import Choice, draw, ids_of, penalise
from minirl.lm.decoding import Decoder
from minirl.lm.sampling import sample
from tests.lm.checkpoints import TOKENIZER
from tests.lm.models import VARIANTS

OPTIONS = {"max_new_tokens": 14, "eos_id": [0, 1, 2], "pad_id": 5, "temperature": 1.3,
           "repetition_penalty": 1.7}


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["eager", "as on CUDA", "compiled"])
def grow(request, monkeypatch):
    """sample, in each of the ways in which a decoder steps. The compiled step is traced, so that no
    compiler has to run."""
    if request.param == "as on CUDA":
        monkeypatch.setattr(sampling, "decoder_for", lambda model, *sizes, **forms: Decoder(
            model, *sizes, **forms, recording=True))
    if request.param != "compiled":
        yield sample
        return
    count = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()

    def compiled(model, *args, **options):
        model.compiled = True
        try:
            return sample(model, *args, **options)
        finally:
            model.compiled = False

    with torch.compiler.set_stance("default", force_backend=count):
        yield compiled
    assert count.frame_count == 1, "a step with a penalty is compiled once, for any rows and slots"


@torch.no_grad()
def plain(model, prompts, *, group, max_new_tokens, eos_id, pad_id, temperature,
          repetition_penalty, reply=None):
    """Row by row and without a cache: what a row holds is a set of its own ids."""
    rows = [prompt for prompt in prompts for _ in range(group)]
    uniform, completions = torch.rand(max_new_tokens, len(rows), generator=generator()), []
    for i, prompt in enumerate(rows):
        ids, given = list(prompt), []
        for t in range(max_new_tokens):
            if given:
                ids.append(given.pop(0))
                continue
            logits = model(torch.tensor([ids]))[0, -1].tolist()
            for id in set(ids):
                logits[id] *= 1 / repetition_penalty if logits[id] > 0 else repetition_penalty
            drawn, _ = draw(torch.tensor([logits]), uniform[t, i:i + 1], temperature, 0, 1.0)
            ids.append(int(drawn))
            if ids[-1] in eos_id:
                given = [] if reply is None else list(reply(i, ids[len(prompt):]))
                if not given:
                    break
        completions.append(ids[len(prompt):])
    return completions


def test_by_hand():
    """Logits of ids that were seen: 3 / 2, -1 * 2, and 0 stays. What was not seen stays."""
    logits, seen = torch.tensor([[3.0, -1.0, 0.0, 2.0]]), torch.tensor([[True, True, True, False]])
    before = logits.clone()
    assert penalise(logits, seen, 2.0).tolist() == [[1.5, -2.0, 0.0, 2.0]]
    assert torch.equal(logits, before)
    assert penalise(logits, seen, 0.5).tolist() == [[6.0, -0.5, 0.0, 2.0]]


def test_what_a_row_holds_is_not_what_pads_it():
    tokens = torch.tensor([[4, 4, 1], [0, 4, 0], [2, 1, 2]])
    ids = ids_of(tokens, torch.tensor([2, 1, 0]), 5)
    assert [row.nonzero().flatten().tolist() for row in ids] == [[1], [0, 4], [1, 2]]
    assert [row.nonzero().flatten().tolist() for row in ids_of(tokens, None, 5)] == [
        [1, 4], [0, 4], [1, 2]]


def test_it_comes_before_the_temperature_and_the_filters():
    """Logits ln 9, ln 3, ln 1 with θ = 2 on the first: 3, 3, 1. At temperature 1/2 that is 9, 9, 1;
    the likeliest two are kept, and each has probability 1/2."""
    logits, seen = torch.tensor([[9.0, 3.0, 1.0]]).log(), torch.tensor([[True, False, False]])
    for u, id in ((0.49, 0), (0.51, 1), (0.999, 1)):
        ids, logp = draw(logits, torch.tensor([u]), 0.5, 2, 1.0, 0.0, 2.0, seen=seen)
        assert ids.tolist() == [id] and logp.exp().tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("group", [1, 3])
def test_every_decoder_penalises_what_each_row_holds(make_model, ragged, grow, group):
    """Rows of a group part at their first draw, and rows leave the batch at several steps."""
    model = make_model()
    expected = plain(model, ragged, group=group, **OPTIONS)
    assert len({len(row) for row in expected}) > 2
    assert expected != plain(model, ragged, group=group, **{**OPTIONS, "repetition_penalty": 1.0})
    got = grow(model, ragged, group=group, generator=generator(), **OPTIONS)
    assert got.completion_ids() == expected


def test_ids_that_a_reply_gives_are_penalised(make_model, grow):
    """A row that samples 0, 1 or 2 is given two ids, once."""
    def reply(row, ids):
        return [11, 7] if sum(id in (0, 1, 2) for id in ids) == 1 else []

    model, prompts = make_model(), [[3, 1, 4], [9, 8, 7]]
    expected = plain(model, prompts, group=6, reply=reply, **OPTIONS)
    assert sum(11 in row and row.index(11) < len(row) - 3 for row in expected) > 2
    got = grow(model, prompts, group=6, reply=reply, generator=generator(), **OPTIONS)
    assert got.completion_ids() == expected


def test_rows_that_branch(make_model, ragged):
    """As sample has it, from the first token on; and after a row was given tokens and copied."""
    model = make_model()
    choice = Choice(1.3, 0, 1.0, repetition_penalty=1.7)
    branches = Branches(model, ragged)
    assert branches.grow([14] * 4, stops=[0, 1, 2], choice=choice,
                         generator=generator()) == plain(model, ragged, group=1, **OPTIONS)
    branches.give(0, [6, 7])
    branches.select([0, 0, 3])
    rows = [list(row) for row in branches.tokens]
    greedy = Choice(0.0, 0, 1.0, repetition_penalty=1.7)
    drawn = branches.grow([5] * 3, stops=[], choice=greedy)
    assert drawn == plain(model, rows, group=1, max_new_tokens=5, eos_id=[], pad_id=5,
                          temperature=0.0, repetition_penalty=1.7)


def test_off_is_as_it_was(make_model, ragged):
    model, options = make_model(), {**OPTIONS, "repetition_penalty": 1.0}
    without = {name: value for name, value in options.items() if name != "repetition_penalty"}
    a, b = (sample(model, ragged, group=3, generator=generator(), **x) for x in (options, without))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.behavior_logp, b.behavior_logp)
    decoder = Decoder(model, 4, 7, 14, Choice(1.0, 0, 1.0), (), padded=True, recording=False)
    assert decoder.seen is None


@torch.no_grad()
def test_the_log_prob_is_that_of_what_was_drawn_from(make_model):
    """And for greedy rows the model's own, at temperature 1 and without the penalty."""
    model, prompt = make_model(), [3, 1, 4]
    options = {**OPTIONS, "eos_id": None}
    for temperature in (1.3, 0.0):
        r = sample(model, [prompt], generator=generator(), **{**options,
                                                              "temperature": temperature})
        ids, expected = list(prompt), []
        for id in r.completion_ids()[0]:
            logits = model(torch.tensor([ids]))[:, -1]
            if temperature:
                logits = penalise(logits, ids_of(torch.tensor([ids]), None, 23), 1.7) / temperature
            expected.append(float(logits.log_softmax(-1)[0, id]))
            ids.append(id)
        assert r.behavior_logp[0, len(prompt):].tolist() == pytest.approx(expected, abs=1e-5)


# transformers

def test_the_penalty_is_that_of_transformers():
    process = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor
    for seed, penalty in enumerate((0.5, 1.2, 3.0)):
        logits = torch.randn(6, 30, generator=generator(seed))
        tokens = torch.randint(30, (6, 12), generator=generator(seed))
        expected = process(penalty)(tokens, logits)
        assert torch.equal(penalise(logits, ids_of(tokens, None, 30), penalty), expected)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "biased"])
@pytest.mark.parametrize("penalty", [1.2, 0.8])
def test_greedy_tokens_are_those_of_generate(make_model, tmp_path, variant, penalty):
    """The same weights, token for token. Theirs go one by one: in a padded batch they penalise the
    padding, too. Weights so large that no two logits are equal but for rounding."""
    transformers = pytest.importorskip("transformers")
    model = make_model(variant, vocab_size=TOKENIZER.vocab_size)
    save_pretrained(model, TOKENIZER, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[13, 11, 14, 11, 15], [19], [33, 35, 38, 39, 37, 39, 33]]
    options = {"max_new_tokens": 24, "repetition_penalty": penalty}
    ours, free = (sample(model, prompts, temperature=0, eos_id=TOKENIZER.stop_ids, pad_id=0, **x)
                  for x in (options, {"max_new_tokens": 24}))
    assert ours.completion_ids() != free.completion_ids()
    assert max(map(len, ours.completion_ids())) > 10
    for prompt, completion in zip(prompts, ours.completion_ids(), strict=True):
        config = transformers.GenerationConfig(do_sample=False, pad_token_id=0, **options)
        out = theirs.generate(torch.tensor([prompt]), generation_config=config)
        assert out[0, len(prompt):].tolist() == completion


def test_deviation_transformers_penalises_the_padding_of_a_prompt():
    """Of a prompt [3] that is padded with id 0 to [0, 0, 3], theirs lowers the ids 0 and 3: where
    the padding is EOS, an answer that no one has ended yet. Ours lowers 3 alone."""
    process = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor
    tokens, logits = torch.tensor([[0, 0, 3]]), torch.full((1, 5), 2.0)
    assert process(2.0)(tokens, logits.clone()).tolist() == [[1.0, 2.0, 2.0, 1.0, 2.0]]
    seen = ids_of(tokens, torch.tensor([2]), 5)
    assert penalise(logits, seen, 2.0).tolist() == [[2.0, 2.0, 2.0, 1.0, 2.0]]
