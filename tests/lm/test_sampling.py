"""minirl/lm/sampling.py: what is drawn, with which probability, and how it is laid out."""

import doctest
import math

import pytest
import torch

from minirl.lm import sampling
from minirl.lm.choice import draw, keep_likeliest
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from tests.lm.models import Markov

INF = float("inf")
ALMOST_ONE = 1 - 2 ** -24            # the largest float32 below 1, and the largest of torch.rand
P = [0.05, 0.3, 0.15, 0.4, 0.1]      # likeliest first: ids 3, 1, 2, 4, 0


def successor(vocab=9):
    """Token i is followed by i + 1, with all but certainty."""
    return Markov([[100.0 if j == (i + 1) % vocab else 0.0 for j in range(vocab)]
                   for i in range(vocab)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(ids, probabilities):
    counts = torch.bincount(ids, minlength=len(probabilities)).double()
    expected = torch.tensor(probabilities, dtype=torch.float64) * len(ids)
    return float(((counts - expected) ** 2 / expected).sum())


# the plain sampler of the docstring

@pytest.fixture
def plain_sample():
    example = doctest.DocTestParser().get_examples(sampling.__doc__)[0]
    names = {"torch": torch}
    exec(example.source, names)
    return names["plain_sample"]


@torch.no_grad()
@pytest.mark.parametrize("eos_id", [0, 7, 100])
def test_the_plain_sampler_draws_the_same_greedy_tokens(model, ragged, plain_sample, eos_id):
    rollouts = sample(model, ragged, max_new_tokens=12, temperature=0,
                      eos_id=None if eos_id == 100 else eos_id, pad_id=0)
    plain = [plain_sample(model, prompt, 12, eos_id, temperature=1e-6) for prompt in ragged]
    assert rollouts.completion_ids() == plain


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.3, 3.0])
def test_the_plain_sampler_draws_from_the_same_distribution(make_model, plain_sample, temperature):
    """2,000 completions of up to two of 4 ids, one of which ends: 13 kinds, from each sampler.

    Counts a and b of two samples of one size: Σ (a - b)² / (a + b) is chi-square with 12 degrees of
    freedom, and exceeds 50 once in a million streams; the seeds are fixed.
    """
    model, prompt, n = make_model(vocab_size=4), [2, 1, 3], 2_000
    options = {"max_new_tokens": 2, "temperature": temperature, "eos_id": 0}
    fast = sample(model, [prompt], group=n, pad_id=0, generator=generator(), **options)
    torch.manual_seed(0)
    plain = [plain_sample(model, prompt, **options) for _ in range(n)]
    counts = {}
    for side, completions in enumerate((fast.completion_ids(), plain)):
        for completion in completions:
            counts.setdefault(tuple(completion), [0, 0])[side] += 1
    assert len(counts) == 13
    assert sum((a - b) ** 2 / (a + b) for a, b in counts.values()) < 50


# sampler and learner

@torch.no_grad()
@pytest.mark.parametrize("temperature, pad_id", [(0.7, 0), (1.0, 22), (1.5, 1)])
def test_sampler_and_learner_agree(model, ragged, temperature, pad_id):
    """The first ratio of an update must be 1. Left padding, a forgotten temperature, dropout or a
    shift by one all show here."""
    r = sample(model, ragged, group=3, max_new_tokens=12, temperature=temperature, eos_id=[0, 1],
               pad_id=pad_id, generator=generator())
    assert len(set(r.completion_lengths.tolist())) > 2    # rows left at several steps
    logp = token_logprobs(model, r.tokens, mask=r.mask, temperature=temperature)
    assert ((logp - r.behavior_logp).exp() - 1).abs().max() < 1e-5
    assert (r.behavior_logp[r.mask] < 0).all() and (r.behavior_logp[~r.mask] == 0).all()
    assert not r.behavior_logp.requires_grad


def test_sampler_and_learner_agree_in_bfloat16_within_its_rounding(make_model, ragged):
    options = {"group": 2, "max_new_tokens": 8, "eos_id": 0, "pad_id": 0}
    model = make_model("qwen3")
    with compute_in("bfloat16", torch.device("cpu")):
        r = sample(model, ragged, **options, generator=generator())
        logp = token_logprobs(model, r.tokens, mask=r.mask)
    assert (logp - r.behavior_logp).abs().max() < 0.2
    low = make_model("qwen3").to(torch.bfloat16)
    r = sample(low, ragged, **options, generator=generator())
    assert r.behavior_logp.dtype == torch.float32
    logp = token_logprobs(low, r.tokens, mask=r.mask)
    assert (logp - r.behavior_logp).abs().max() < 0.2


@torch.no_grad()
def test_greedy_takes_the_likeliest_id_of_the_full_forward(model, ragged):
    r = sample(model, ragged, max_new_tokens=6, temperature=0, eos_id=None, pad_id=0)
    rows = zip(ragged, r.completion_ids(), r.behavior_logp, r.mask, strict=True)
    for prompt, completion, logp, mask in rows:
        tokens, ids, logps = list(prompt), [], []
        for _ in range(6):
            log_p = model(torch.tensor([tokens]))[0, -1].log_softmax(-1)
            tokens.append(int(log_p.argmax()))
            ids.append(tokens[-1])
            logps.append(float(log_p.max()))
        assert completion == ids
        # the model's own, at temperature 1
        assert logp[mask].tolist() == pytest.approx(logps, abs=1e-5)


# what decides the draws

def test_the_same_seed_draws_the_same_tokens(make_model, ragged):
    model = make_model()
    options = {"group": 2, "max_new_tokens": 8, "eos_id": 0, "pad_id": 0}
    a, b, c = (sample(model, ragged, **options, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.behavior_logp, b.behavior_logp)
    assert a.completion_ids() != c.completion_ids()
    torch.manual_seed(7)
    first = sample(model, ragged, **options)
    torch.manual_seed(7)
    assert torch.equal(first.tokens, sample(model, ragged, **options).tokens)
    before = torch.get_rng_state()
    sample(model, ragged, **options, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)    # the global generator is left alone


def test_rows_that_end_change_no_other_row(model, ragged):
    """Compare with a run in which nothing ends, cut at the first EOS. A row left at the wrong place
    in the cache continues another one's past."""
    options = {"group": 3, "max_new_tokens": 12, "pad_id": 5, "temperature": 1.3}
    short = sample(model, ragged, **options, eos_id=[0, 1, 2], generator=generator(3))
    full = sample(model, ragged, **options, eos_id=None, generator=generator(3))
    assert full.truncated.all() and full.completion_lengths.tolist() == [12] * 12
    assert len(set(short.completion_lengths.tolist())) > 3    # rows left at several steps
    both = zip(short.completion_ids(), full.completion_ids(), strict=True)
    for i, (ids, all_ids) in enumerate(both):
        stops = [t for t, token in enumerate(all_ids) if token in (0, 1, 2)]
        assert ids == all_ids[:stops[0] + 1 if stops else 12]
        assert bool(short.truncated[i]) == (not stops)
        logp = full.behavior_logp[i][full.mask[i]][:len(ids)]
        torch.testing.assert_close(short.behavior_logp[i][short.mask[i]], logp,
                                   atol=1e-5, rtol=1e-5)


def test_a_prompt_answers_alike_alone_and_beside_longer_ones(model, ragged):
    options = {"max_new_tokens": 6, "temperature": 0, "eos_id": 0, "pad_id": 0}
    together = sample(model, ragged, **options).completion_ids()
    alone = [sample(model, [prompt], **options).completion_ids()[0] for prompt in ragged]
    assert alone == together


def test_prompts_may_be_tensors_and_stay_as_they_are(make_model):
    prompts = [[3, 1, 4], [1, 5]]
    tensors = [torch.tensor(prompt) for prompt in prompts]
    options = {"max_new_tokens": 4, "eos_id": None, "pad_id": 0}
    a = sample(make_model(), prompts, **options, generator=generator())
    b = sample(make_model(), tensors, **options, generator=generator())
    assert torch.equal(a.tokens, b.tokens) and prompts == [[3, 1, 4], [1, 5]]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_dropout_is_off_meanwhile(make_model, training):
    options = {"max_new_tokens": 6, "eos_id": None, "pad_id": 0}
    expected = sample(make_model(), [[3, 1, 4]], **options, generator=generator())
    model = make_model(dropout=0.5).train(training)
    got = sample(model, [[3, 1, 4]], **options, generator=generator())
    assert torch.equal(got.behavior_logp, expected.behavior_logp)
    assert model.training is training and model.dropout.training is training
    model.norm.forward = lambda hidden: 1 / 0
    with pytest.raises(ZeroDivisionError):
        sample(model, [[3, 1, 4]], **options)
    assert model.training is training


# layout and ends

def test_layout_by_hand():
    """Token i is followed by i + 1; 5 ends; prompts [0], [3], [7, 1]; at most four new tokens."""
    r = sample(successor(), [[0], [3], [7, 1]], group=2, max_new_tokens=4, eos_id=5, pad_id=6)
    assert r.tokens.tolist() == [
        *[[0, 1, 2, 3, 4, 6]] * 2,
        *[[3, 4, 5, 6, 6, 6]] * 2,
        *[[7, 1, 2, 3, 4, 5]] * 2,
    ]
    assert r.mask.int().tolist() == [
        *[[0, 1, 1, 1, 1, 0]] * 2,
        *[[0, 1, 1, 0, 0, 0]] * 2,
        *[[0, 0, 1, 1, 1, 1]] * 2,
    ]
    assert r.prompt_lengths.tolist() == [1, 1, 1, 1, 2, 2]
    assert r.completion_lengths.tolist() == [4, 4, 2, 2, 4, 4]
    # an EOS in the last place is an end
    assert r.truncated.tolist() == [True, True, False, False, False, False]
    assert r.completion_ids() == [[1, 2, 3, 4]] * 2 + [[4, 5]] * 2 + [[2, 3, 4, 5]] * 2
    assert (r.tokens.dtype, r.mask.dtype) == (torch.int64, torch.bool)
    assert (r.behavior_logp.dtype, r.truncated.dtype) == (torch.float32, torch.bool)


def test_rows_of_a_group_stand_together_and_differ(make_model, ragged):
    r = sample(make_model(), ragged, group=4, max_new_tokens=8, eos_id=None, pad_id=0,
               generator=generator())
    for p, prompt in enumerate(ragged):
        rows = r.tokens[4 * p:4 * p + 4]
        assert rows[:, :len(prompt)].tolist() == [prompt] * 4
        assert len({tuple(row) for row in rows.tolist()}) == 4


def test_eos_is_trained_when_it_is_also_the_padding_id(make_model):
    """A mask made from token values (tokens != pad_id) hides the EOS of every checkpoint without a
    padding token: nobody learns to stop."""
    model, eos = make_model("untied"), 5
    r = sample(model, [[5, 1], [5], [3, 5]], group=8, max_new_tokens=20, eos_id=eos, pad_id=eos,
               generator=generator())
    ended = (~r.truncated).nonzero().flatten()
    assert len(ended) > 3
    last = r.prompt_lengths + r.completion_lengths - 1
    assert (r.tokens[ended, last[ended]] == eos).all() and r.mask[ended, last[ended]].all()
    sampled = (last + 1 - r.prompt_lengths).sum()
    assert r.mask.sum() == sum(map(len, r.completion_ids())) == sampled
    logp = token_logprobs(model, r.tokens, mask=r.mask)
    logp[ended, last[ended]].sum().backward()
    # log p(eos) rises with eos's own logit: along the hidden states that predict it, the gradient
    # of its row in the head points forward
    before = model.hidden(r.tokens)[ended, last[ended] - 1].sum(0).detach()
    assert float(model.lm_head.weight.grad[eos] @ before) > 0


@pytest.mark.parametrize("eos_id, completion", [
    (5, [2, 3, 4, 5]),
    ([5], [2, 3, 4, 5]),
    ([5, 3], [2, 3]),
    ((3, 5), [2, 3]),
    ({4}, [2, 3, 4]),
    (0, [2, 3, 4, 5, 6]),
    (None, [2, 3, 4, 5, 6]),
    ([], [2, 3, 4, 5, 6]),
    (2, [2]),
], ids=str)
def test_stop_ids(eos_id, completion):
    """Some published models end on several ids; a sampler that knows one of them runs on after the
    others."""
    r = sample(successor(), [[1]], max_new_tokens=5, eos_id=eos_id, pad_id=0)
    assert r.completion_ids() == [completion] and r.truncated.tolist() == [len(completion) == 5]


@pytest.mark.parametrize("prompt", [[5, 1], [5, 5, 1], [1, 5]], ids=str)
def test_an_eos_in_the_prompt_ends_nothing(prompt):
    """Chat prompts are full of end-of-turn tokens."""
    r = sample(successor(), [prompt, [0]], max_new_tokens=3, eos_id=5, pad_id=5)
    start = prompt[-1] + 1
    assert r.completion_ids() == [[start, start + 1, start + 2], [1, 2, 3]] and r.truncated.all()


def test_the_context_may_be_filled_to_the_last_slot(make_model):
    model = make_model(max_seq_len=10)
    r = sample(model, [[1, 2, 3, 4], [1]], max_new_tokens=6, eos_id=None, pad_id=0)
    assert r.tokens.shape == (2, 10) and r.completion_lengths.tolist() == [6, 6]


# probabilities

@pytest.mark.parametrize("top_k, top_p, temperature, kept", [
    (0, 1.0, 1.0, [0, 1, 2, 3, 4]),
    (1, 1.0, 1.0, [3]),
    (3, 1.0, 1.0, [1, 2, 3]),
    (9, 1.0, 1.0, [0, 1, 2, 3, 4]),
    (0, 0.35, 1.0, [3]),
    (0, 0.6, 1.0, [1, 3]),
    (0, 0.8, 1.0, [1, 2, 3]),
    (0, 1e-6, 1.0, [3]),
    # top_k first: of ids 3, 1, 2 the shares are 0.4 / 0.85 = 0.47, 0.35 and 0.18, so 0.75 is
    # reached with two, not with three
    (3, 0.75, 1.0, [1, 3]),
    # at temperature 0.5 the squares count: 0.16 / 0.285 = 0.561, 0.09 / 0.285 = 0.316, so 0.6 is
    # reached with two; at 1 also with two, 0.55 with one
    (0, 0.55, 0.5, [3]),
    (0, 0.6, 0.5, [1, 3]),
], ids=str)
def test_top_k_and_top_p_keep_the_right_ids_and_renormalise(top_k, top_p, temperature, kept):
    """A learner's log-prob over the whole vocabulary is not that of a cut one: the sampler must
    report what it drew from."""
    weights = [p ** (1 / temperature) if i in kept else 0.0 for i, p in enumerate(P)]
    expected = [w / sum(weights) for w in weights]
    logits = torch.tensor(P).log() + 3.0
    log_p = keep_likeliest((logits / temperature).log_softmax(-1)[None], top_k, top_p)[0]
    assert log_p.exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    r = sample(Markov([logits.tolist()] * 5), [[0]], group=500, max_new_tokens=2,
               temperature=temperature, top_k=top_k, top_p=top_p, eos_id=None, pad_id=0,
               generator=generator())
    ids = r.tokens[:, 1:]
    assert sorted(set(ids.flatten().tolist())) == kept
    torch.testing.assert_close(r.behavior_logp[:, 1:].exp(), torch.tensor(expected)[ids],
                               atol=1e-6, rtol=1e-5)


def test_top_k_keeps_k_of_equally_likely_ids():
    log_p = keep_likeliest(torch.zeros(1, 6).log_softmax(-1), 2, 1.0)
    assert log_p.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0])


@pytest.mark.parametrize("top_p, min_p, expected", [
    (1.0, 0.0, [0.1, 0.2, 0.3, 0.4]),
    (1.0, 0.5, [0, 2 / 9, 3 / 9, 4 / 9]),   # at least 0.2: a tie with the bound stays
    (1.0, 0.51, [0, 0, 3 / 7, 4 / 7]),
    (1.0, 1.0, [0.0, 0.0, 0.0, 1.0]),
    (0.9, 0.6, [0, 0, 3 / 7, 4 / 7]),       # of the three that reach 0.9 those with 0.24
])
def test_min_p_is_a_share_of_the_likeliest(top_p, min_p, expected):
    logp = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert keep_likeliest(logp, 0, top_p, min_p).exp()[0].tolist() == pytest.approx(expected)
    r = sample(Markov([logp[0].tolist()] * 4), [[0]], group=500, max_new_tokens=2, top_p=top_p,
               min_p=min_p, eos_id=None, pad_id=0, generator=generator())
    ids = r.tokens[:, 1:]
    assert set(ids.flatten().tolist()) == {i for i, p in enumerate(expected) if p > 0}
    torch.testing.assert_close(r.behavior_logp[:, 1:].exp(), torch.tensor(expected)[ids],
                               atol=1e-6, rtol=1e-5)


def test_each_row_is_cut_by_itself():
    log_p = torch.tensor([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2]]).log()
    assert keep_likeliest(log_p, 1, 1.0).exp().tolist() == [[0, 0, 1], [1, 0, 0]]
    expected = [pytest.approx([0, 2 / 9, 7 / 9]), pytest.approx([7 / 9, 0, 2 / 9])]
    assert keep_likeliest(log_p, 0, 0.8).exp().tolist() == expected


def how_many_are_kept(logits, top_p):
    return (keep_likeliest(logits.log_softmax(-1), 0, top_p) > -INF).sum(-1).tolist()


@pytest.mark.parametrize("p, top_p, kept", [
    ([0.3, 0.1, 0.1, 0.5], 0.8, 2),
    ([0.4, 0.3, 0.2, 0.1], 0.7, 2),
    ([0.4, 0.3, 0.2, 0.1], 0.9, 3),
    ([0.1] * 10, 0.3, 3),
    ([0.1] * 10, 0.7, 7),
    ([0.05] * 20, 0.35, 7),
    ([1 / 3] * 3, 2 / 3, 2),
    ([0.3, 0.1, 0.1, 0.5], 0.8001, 3),
    ([0.1] * 10, 0.3001, 4),
    ([0.7, 0.3], 1e-9, 1),
    ([0.5, 0.5], 0.9999, 2),
])
def test_top_p_keeps_the_fewest_ids_that_reach_it(p, top_p, kept):
    """In float32 0.5 + 0.3 is 0.79999995 after a log-softmax, and a third id was kept for the sake
    of the last digit. Of twenty ids of 0.05 it was an eighth for 0.35."""
    for scale in (1.0, 3.0, 1e-3):
        assert how_many_are_kept((torch.tensor([p]) * scale).log(), top_p) == [kept]


def test_top_p_is_that_of_transformers():
    """Random distributions, from flat to peaked. Where a sum is as near to top_p as 2e-6, rounding
    decides in theirs: there, and only there, it may keep one more or one less."""
    logits_process = pytest.importorskip("transformers").generation.logits_process
    g, decided = generator(), 0
    for trial in range(300):
        logits = torch.randn(8, 2 + trial, generator=g) * 5 * torch.rand(1, generator=g)
        top_p = 0.001 + 0.998 * float(torch.rand(1, generator=g))
        warper = logits_process.TopPLogitsWarper(top_p)
        theirs = (warper(None, logits) > -INF).sum(-1).tolist()
        sums = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)    # exact
        near = ((sums - top_p).abs() < 2e-6).any(-1).tolist()
        rows = zip(how_many_are_kept(logits, top_p), theirs, near, strict=True)
        for ours, expected, undecided in rows:
            assert ours == expected or undecided and abs(ours - expected) == 1
            decided += not undecided
    assert decided > 2300


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_frequencies_match_the_probabilities(temperature):
    """20,000 draws over 5 ids. Chi-square with 4 degrees of freedom exceeds 33.4 once in a million
    streams; the seed is fixed."""
    weights = [p ** (1 / temperature) for p in P]
    expected = [w / sum(weights) for w in weights]
    uniform = torch.rand(20_000, generator=generator())
    ids, logp = draw(torch.tensor(P).log().expand(20_000, 5), uniform, temperature, 0, 1.0)
    assert chi_square(ids, expected) < 33.4
    torch.testing.assert_close(logp.exp(), torch.tensor(expected)[ids], atol=1e-6, rtol=1e-5)


def test_sampled_pairs_match_the_chain():
    """20,000 rows of two tokens, 9 pairs: one number used for both steps, or for two rows, shows in
    the pairs and not in the singles.

    Chi-square with 8 degrees of freedom exceeds 42.7 once in a million streams; the seed is fixed.
    """
    chain = [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5]]
    model = Markov([[math.log(p) for p in row] for row in chain])
    r = sample(model, [[0]], group=20_000, max_new_tokens=2, eos_id=None, pad_id=0,
               generator=generator())
    first, second = r.tokens[:, 1], r.tokens[:, 2]
    along = [chain[0][i] * chain[i][j] for i in range(3) for j in range(3)]
    assert chi_square(3 * first + second, along) < 42.7
    # neighbouring rows of the first step are independent as well: 10,000 pairs
    beside = [chain[0][i] * chain[0][j] for i in range(3) for j in range(3)]
    assert chi_square(3 * first[::2] + first[1::2], beside) < 42.7


@pytest.mark.parametrize("temperature, top_k, top_p",
                         [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.9)])
def test_an_impossible_id_is_never_drawn(temperature, top_k, top_p):
    """Cumulative sums end a little below or above 1: a number just under 1 then points past the
    last possible id, and 0 at an impossible first."""
    g = generator()
    logits = torch.full((200, 40), -INF)
    logits[:, 3:30] = torch.randn(200, 27, generator=g) * 3
    logits[:, 11] = -INF    # and one in the middle
    for u in (0.0, 1e-38, 0.5, ALMOST_ONE, 1.0):    # 1.0 should not come, and does no harm
        ids, logp = draw(logits, torch.full((200,), u), temperature, top_k, top_p)
        assert ((ids >= 3) & (ids < 30) & (ids != 11)).all() and logp.isfinite().all()
    one = torch.tensor([[-INF, 2.0, -INF]])
    ids, logp = draw(one, torch.tensor([ALMOST_ONE]), temperature, top_k, top_p)
    assert ids.tolist() == [1] and logp.tolist() == [0.0]


def test_draw_inverts_the_cumulative_distribution():
    """p = 1/4, 1/2, 1/4: numbers below 0.25 give id 0, from 0.25 on id 1, from 0.75 on id 2."""
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, ALMOST_ONE])
    ids, logp = draw(torch.tensor([1.0, 2.0, 1.0]).log().expand(6, 3), uniform, 1.0, 0, 1.0)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert logp.exp().tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.25])


# errors

GOOD = {"prompts": [[1, 2], [3]], "group": 1, "max_new_tokens": 4, "temperature": 1.0, "top_k": 0,
        "top_p": 1.0, "eos_id": 0, "pad_id": 0}


@pytest.mark.parametrize("wrong, message", [
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": [[1], []]}, "prompt 1 is empty"),
    ({"prompts": [[1], [2] * 62]}, "prompt 1 has 62 tokens.*max_new_tokens 4.*64"),
    ({"prompts": [[1], [2, 23]]}, "prompt 1 holds the id 23"),
    ({"prompts": [[-1]]}, "prompt 0 holds the id -1"),
    ({"prompts": [[1.0]]}, "prompt 0 holds the id 1.0"),
    ({"prompts": ["two and two"]}, "'two and two' is text"),
    ({"prompts": "two and two"}, "is text"),
    ({"prompts": [["1"]]}, "prompt 0 holds the id '1'"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": 63}, "prompt 0 has 2 tokens; with max_new_tokens 63"),
    ({"group": 0}, "group is 0"),
    ({"temperature": -0.5}, "temperature is -0.5"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": INF}, "temperature is inf"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"top_p": math.nan}, "top_p is nan"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"min_p": 1.1}, "min_p is 1.1"),
    ({"min_p": math.nan}, "min_p is nan"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"repetition_penalty": INF}, "repetition_penalty is inf"),
    ({"repetition_penalty": math.nan}, "repetition_penalty is nan"),
    ({"eos_id": 23}, "eos_id holds the id 23"),
    ({"eos_id": [0, -1]}, "eos_id holds the id -1"),
    ({"pad_id": 99}, "pad_id holds the id 99"),
    ({"pad_id": None}, "pad_id holds the id None"),
], ids=str)
def test_wrong_arguments_raise(make_model, wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(make_model(), **{**GOOD, **wrong})
