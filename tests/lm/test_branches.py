"""minirl/lm/branches.py: rows that branch over one cache."""

import random
import warnings

import pytest
import torch
import torch._dynamo.testing

from minirl.lm import branches as module
from minirl.lm.branches import ROOM, Branches
from minirl.lm.choice import Choice, draw
from minirl.lm.decoding import WORTH_LEAVING
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from tests.lm.models import Markov, build_model

PLAIN, GREEDY = Choice(1.0, 0, 1.0), Choice(0, 0, 1.0)


@torch.no_grad()
def greedy(model, ids, n):
    """n more tokens without any cache."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.fixture
def seen(monkeypatch):
    """How many rows each step has."""
    rows, advance = [], module.advance

    def counting(model, ids, *rest):
        rows.append(len(ids))
        return advance(model, ids, *rest)

    monkeypatch.setattr(module, "advance", counting)
    return rows


def test_rows_grow_as_the_sampler_lets_them(model, ragged):
    """The same prompts, the same numbers, the same tokens: row i's t-th draw is decided by the same
    uniform number in both."""
    stops = list(range(8))
    rollouts = sample(model, ragged, group=3, max_new_tokens=12, temperature=0.9, top_k=9,
                      top_p=0.95, eos_id=stops, pad_id=0,
                      generator=torch.Generator().manual_seed(3))
    branches = Branches(model, ragged)
    branches.select([i for i in range(len(ragged)) for _ in range(3)])
    drawn = branches.grow([12] * 12, stops=stops, choice=Choice(0.9, 9, 0.95),
                          generator=torch.Generator().manual_seed(3))
    assert drawn == rollouts.completion_ids()
    assert len({len(row) for row in drawn}) > 3      # rows ended at many lengths


@pytest.mark.parametrize("prompts", [[[3, 1, 4], [2, 7, 1]], [[3], [8]], [[9] * 40, [5]]])
@pytest.mark.parametrize("choice", [GREEDY, Choice(0.7, 5, 1.0)])
def test_prompts_of_one_length_of_one_token_and_of_very_different_lengths(model, prompts, choice):
    """Without padding there is no mask; of one token each, no prompt is read before the first draw;
    and 39 slots of padding. 66 rows, so that some stay for a while after their end."""
    rollouts = sample(model, prompts, group=33, max_new_tokens=8, temperature=choice.temperature,
                      top_k=choice.top_k, eos_id=[1, 2, 3], pad_id=0,
                      generator=torch.Generator().manual_seed(5))
    branches = Branches(model, prompts)
    branches.select([0] * 33 + [1] * 33)
    drawn = branches.grow([8] * 66, stops=[1, 2, 3], choice=choice,
                          generator=torch.Generator().manual_seed(5))
    assert drawn == rollouts.completion_ids()


class Plain:
    """What Branches does, without a cache and row by row: each draw reads the whole row."""

    def __init__(self, model, prompts):
        self.model, self.tokens = model, [list(prompt) for prompt in prompts]
        self.given = [[] for _ in prompts]      # what was put behind each row and not yet read

    def select(self, rows):
        self.tokens = [list(self.tokens[i]) for i in rows]
        self.given = [list(self.given[i]) for i in rows]

    def give(self, row, ids):
        self.tokens[row] += ids
        self.given[row] += ids

    def take_back(self, row):
        self.given[row] = self.given[row][:-1]
        return self.tokens[row].pop()

    @torch.no_grad()
    def grow(self, limits, *, stops, choice, generator):
        """Row i's t-th number decides its t-th step; steps in which it is given a token use up
        theirs."""
        steps = [len(ids) + limit for ids, limit in zip(self.given, limits, strict=True)]
        uniform = torch.rand(max(steps), len(steps), generator=generator)
        drawn = [[] for _ in limits]
        for i, row in enumerate(self.tokens):
            for t in range(len(self.given[i]), steps[i]):
                logits = self.model(torch.tensor([row]))[:, -1]
                row.append(int(draw(logits, uniform[t, i:i + 1], *choice)[0]))
                drawn[i].append(row[-1])
                if row[-1] in stops:
                    break
            self.given[i] = []
        return drawn


@pytest.mark.parametrize("choice", [GREEDY, PLAIN, Choice(0.8, 4, 0.9)])
def test_any_order_of_operations_is_what_it_is_without_a_cache(model, ragged, choice):
    """Rows are copied, dropped, mixed, given tokens, cut back and grown at random. Tokens that are
    given right after a step are read in the next one, before its draws."""
    rng = random.Random(repr(choice))
    both = Branches(model, ragged), Plain(model, ragged)
    generators = [torch.Generator().manual_seed(7) for _ in both]
    for _ in range(5):
        n = len(both[0].tokens)
        rows = [rng.randrange(n) for _ in range(rng.randint(2, 9))]
        limits = [rng.randint(1, 5) for _ in rows]
        put = {i: [rng.randrange(23) for _ in range(rng.randint(1, 3))]
               for i in range(len(rows)) if rng.random() < 0.3}
        back = [i for i in range(len(rows)) if rng.random() < 0.3]
        drawn = []
        for branches, generator in zip(both, generators, strict=True):
            branches.select(rows)
            for i, ids in put.items():
                branches.give(i, ids)
            taken = [branches.take_back(i) for i in back if len(branches.tokens[i]) > 3]
            drawn.append((taken, branches.grow(limits, stops=[3, 4, 5], choice=choice,
                                               generator=generator)))
        assert drawn[0] == drawn[1] and both[0].tokens == both[1].tokens


def test_the_context_may_be_filled_to_the_last_token(make_model):
    """One of 40 rows fills the context in its first step; the others grow by 30 tokens. A single
    row of 40 is not worth a smaller batch, but where it stayed, it would leave the context."""
    model = make_model()
    full = model.config.max_seq_len
    assert 1 < WORTH_LEAVING * 40
    branches = Branches(model, [[5] * (full - 1), [3, 1, 4]])
    branches.select([0] + [1] * 39)
    branches.grow([1] + [30] * 39, stops=[], choice=GREEDY)
    assert branches.tokens[:2] == [greedy(model, [5] * (full - 1), 1), greedy(model, [3, 1, 4], 30)]
    with pytest.raises(ValueError, match=f"context of {full}"):
        branches.grow([2] * 40, stops=[], choice=GREEDY)


@torch.no_grad()
@pytest.mark.parametrize("low", [False, True])
def test_in_bfloat16_rows_grow_within_its_rounding(make_model, ragged, low):
    """Each greedy token is the likeliest one without a cache, or within rounding of it: matrix
    products in bfloat16 (autocast), and weights in bfloat16."""
    model = make_model("qwen3")
    if low:
        model = model.to(torch.bfloat16)
    with compute_in("float32" if low else "bfloat16", torch.device("cpu")):
        branches = Branches(model, [*ragged, [4]])
        branches.grow([3, 6, 2, 9, 4], stops=[], choice=GREEDY)
        branches.select([4, 3, 3, 0])
        branches.give(1, [2, 8])
        branches.grow([5, 3, 7, 2], stops=[], choice=GREEDY)
        logits = branches.next_logits()
        for row, last in zip(branches.tokens, logits, strict=True):
            whole = model(torch.tensor([row]))[0].float()
            assert (whole[-1] - last.float()).abs().max() < 0.3
    for i, prompt in ((0, 1), (2, 7)):      # nothing was given to these rows
        row = torch.tensor([branches.tokens[i]])
        whole = model(row)[0, prompt - 1:-1].float()
        chosen = whole.gather(1, row[0, prompt:, None]).squeeze(1)
        assert (whole.amax(-1) - chosen).max() < 0.3


def test_compiled_rows_grow_as_plain_ones(make_model, ragged):
    """As the sampler's, the step is compiled once for any number of rows and slots; a single row,
    which would be compiled for itself, takes the plain step. (The compiler's own backend is left
    out: what is counted is how often it is called.)"""
    plain, fast = (make_model(max_seq_len=256) for _ in range(2))
    fast.compiled = True
    count = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    tokens = []
    with torch.compiler.set_stance("default", force_backend=count), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)      # nothing falls back
        for model in (plain, fast):
            branches = Branches(model, ragged)
            branches.select([0, 1, 2, 3] * 3)
            branches.grow([4 + i for i in range(12)], stops=[2, 3], choice=PLAIN,
                          generator=torch.Generator().manual_seed(2))
            branches.select([7, 0, 0, 5, 1])
            branches.give(3, [1, 4])
            branches.grow([40, 3, 9, 9, 70], stops=[2], choice=PLAIN,
                          generator=torch.Generator().manual_seed(3))
            branches.select([4])
            branches.grow([5], stops=[], choice=PLAIN, generator=torch.Generator().manual_seed(4))
            tokens.append(branches.tokens)
    torch._dynamo.reset()
    assert tokens[0] == tokens[1] and count.frame_count == 1


def test_a_row_that_grows_token_by_token_stays_where_it_is(make_model, ragged):
    """next_logits copies no cache from token to token, but for one time in ROOM, when a larger one
    is made; rows that are chosen are copied, and those that stay in their order are not."""
    branches, stores = Branches(make_model(), ragged), []
    for _ in range(ROOM + 1):
        branches.next_logits()
        stores.append(branches._cache.keys[0].data_ptr())
        branches.select([0, 1, 2, 3])
        for i in range(4):
            branches.give(i, [i + 1])
    assert len(set(stores)) == 2 and stores == sorted(stores, key=stores.index)
    held = branches._cache
    branches.select([1, 0, 2, 3])
    branches.next_logits()
    assert branches._cache is not held


def test_growing_in_stretches_is_growing_at_once(model, ragged):
    """Between stretches rows are copied, dropped and mixed, and end in different slots."""
    branches = Branches(model, ragged)
    branches.grow([1, 5, 2, 3], stops=[], choice=GREEDY)
    branches.select([3, 1, 1, 0])
    branches.grow([4, 1, 6, 2], stops=[], choice=GREEDY)
    branches.select([2, 3, 0])
    branches.grow([1, 1, 1], stops=[], choice=GREEDY)
    wanted = [greedy(model, ragged[i], n) for i, n in ((1, 12), (0, 4), (3, 8))]
    assert branches.tokens == wanted


def test_a_row_goes_on_from_what_it_was_given(model, ragged):
    branches = Branches(model, ragged)
    branches.grow([3, 1, 2, 4], stops=[], choice=GREEDY)
    branches.give(0, [7, 7, 2])
    branches.take_back(1)
    branches.give(1, [5])
    branches.take_back(3)
    starts = [list(row) for row in branches.tokens]
    drawn = branches.grow([4, 4, 1, 3], stops=[], choice=GREEDY)
    wanted = [greedy(model, row, n) for row, n in zip(starts, (4, 4, 1, 3), strict=True)]
    assert branches.tokens == wanted
    assert [len(row) for row in drawn] == [4, 4, 1, 3]


def test_a_row_is_cut_back_further_than_its_last_token(model, ragged):
    branches = Branches(model, ragged[:2])
    branches.grow([4, 4], stops=[], choice=GREEDY)
    assert [branches.take_back(0) for _ in range(3)] == greedy(model, ragged[0], 4)[:-4:-1]
    branches.give(0, [6, 6])
    start = list(branches.tokens[0])
    branches.grow([3, 1], stops=[], choice=GREEDY)
    assert branches.tokens == [greedy(model, start, 3), greedy(model, ragged[1], 5)]


def test_logits_are_those_without_a_cache(model, ragged):
    branches = Branches(model, ragged)
    branches.grow([3, 1, 2, 4], stops=[], choice=PLAIN, generator=torch.Generator().manual_seed(0))
    for ids in ([4, 5, 6, 7], [1, 1, 2, 2]):
        logits = branches.next_logits()
        with torch.no_grad():
            wanted = torch.stack([model(torch.tensor([row]))[0, -1] for row in branches.tokens])
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        for i, id in enumerate(ids):
            branches.give(i, [id])
    assert branches.next_logits().shape == wanted.shape      # asked twice, it reads the last again
    torch.testing.assert_close(branches.next_logits(), branches.next_logits())


def chain(vocab=9):
    """Token i is followed by i + 1, with all but certainty, and the last one by 0."""
    return Markov([[100.0 if j == (i + 1) % vocab else 0.0 for j in range(vocab)]
                   for i in range(vocab)])


def test_stops_and_limits(seen):
    """From 1, 5 and 7 up to 0 or four tokens: a row that has ended leaves."""
    branches = Branches(chain(), [[1], [5], [7], [3, 3]])
    drawn = branches.grow([4, 9, 9, 1], stops=[0], choice=GREEDY)
    assert drawn == [[2, 3, 4, 5], [6, 7, 8, 0], [8, 0], [4]]
    assert seen == [4, 3, 2, 2]
    assert branches.computed == 1 + 4 + 3 + 2 + 2        # one token of [3, 3], and those drawn


def test_a_stop_that_was_given_ends_nothing():
    branches = Branches(chain(), [[1], [5]])
    branches.give(0, [0, 6])
    assert branches.grow([9, 2], stops=[0], choice=GREEDY) == [[7, 8, 0], [6, 7]]
    assert branches.tokens == [[1, 0, 6, 7, 8, 0], [5, 6, 7]]


def test_an_ended_row_that_has_not_left_yet_draws_nothing_more(monkeypatch):
    """Where rows leave late, a second stop must not make a row longer."""
    monkeypatch.setattr(module, "WORTH_LEAVING", 2.0)
    branches = Branches(chain(), [[7], [1]])
    branches.give(1, [5] * 15)      # it goes on while the first row would come to its second stop
    assert branches.grow([20, 2], stops=[0], choice=GREEDY) == [[8, 0], [6, 7]]
    assert branches.grow([1, 1], stops=[], choice=GREEDY) == [[1], [8]]


def test_on_a_gpu_ended_rows_are_asked_for_now_and_then(model, ragged, monkeypatch):
    """As there, every 8 steps and where a limit is reached: the same tokens, and more of them
    computed."""
    tokens, computed = [], []
    for steps in (1, 8):
        monkeypatch.setattr(module, "ASK", {"cpu": steps, "cuda": steps})
        branches = Branches(model, ragged)
        branches.select([0, 1, 2, 3] * 5)
        branches.grow([9 + i for i in range(20)], stops=range(6), choice=PLAIN,
                      generator=torch.Generator().manual_seed(0))
        branches.select([19, 3, 7, 7])
        branches.grow([3] * 4, stops=[], choice=GREEDY)
        tokens.append(branches.tokens)
        computed.append(branches.computed)
    assert tokens[0] == tokens[1] and computed[0] < computed[1]


def test_a_prompt_is_read_once_for_all_its_rows(ragged):
    """16 tokens in four prompts: 12 before the last ones, then one for each that is drawn."""
    branches = Branches(build_model(), ragged)
    assert branches.computed == sum(len(prompt) - 1 for prompt in ragged) == 12
    branches.select([0] * 10 + [1] * 10)
    branches.grow([3] * 20, stops=[], choice=PLAIN)
    assert branches.computed == 12 + 60
    branches.select([4] * 5)
    branches.grow([2] * 5, stops=[], choice=PLAIN)
    assert branches.computed == 12 + 60 + 10


def test_many_rows_that_end_at_many_times_keep_their_own_cache(model):
    """Rows change places as others leave: afterwards each goes on from its own tokens."""
    branches = Branches(model, [[3, 1, 4], [2, 7]])
    branches.select([0, 1] * 20)
    branches.grow([1 + i % 7 for i in range(40)], stops=[2, 3, 5], choice=PLAIN,
                  generator=torch.Generator().manual_seed(1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2)).tolist()[:12]
    branches.select(order)
    starts = [list(row) for row in branches.tokens]
    branches.grow([2] * 12, stops=[], choice=GREEDY)
    assert branches.tokens == [greedy(model, row, 2) for row in starts]


def test_the_mode_of_the_model_and_the_prompts_stay_as_they_are(ragged):
    model, before = build_model().train(), [list(prompt) for prompt in ragged]
    branches = Branches(model, ragged)
    branches.grow([2] * 4, stops=[], choice=PLAIN)
    assert model.training and ragged == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_rows_grow_as_on_a_cpu(model, ragged):
    tokens = []
    for device in ("cpu", "cuda"):
        branches = Branches(model.to(device), ragged)
        branches.grow([1, 5, 2, 3], stops=[2], choice=Choice(0.9, 9, 0.95),
                      generator=torch.Generator().manual_seed(0))
        branches.select([3, 1, 1, 0])
        branches.give(2, [4, 5])
        branches.grow([4, 1, 6, 2], stops=[3], choice=GREEDY)
        tokens.append(branches.tokens)
    assert tokens[0] == tokens[1]


def test_errors(ragged):
    model = build_model()
    branches = Branches(model, ragged)
    with pytest.raises(ValueError, match="at least 1"):
        branches.grow([1, 0, 1, 1], stops=[], choice=PLAIN)
    with pytest.raises(ValueError, match="for 4 rows"):
        branches.grow([1], stops=[], choice=PLAIN)
    branches.give(0, [1, 2])
    with pytest.raises(ValueError, match="several tokens"):
        branches.next_logits()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        Branches(model, ragged).grow([1] * 4, stops=[], choice=PLAIN)
    branches.select([])
    assert branches.grow([], stops=[], choice=PLAIN) == []
