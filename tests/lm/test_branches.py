"""minirl/lm/branches.py: rows that branch over one cache."""

import pytest
import torch

from minirl.lm.branches import Branches
from minirl.lm.choice import Choice
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
    from minirl.lm import branches as module
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
    from minirl.lm import branches as module
    monkeypatch.setattr(module, "WORTH_LEAVING", 2.0)
    branches = Branches(chain(), [[7], [1]])
    branches.give(1, [5] * 15)      # it goes on while the first row would come to its second stop
    assert branches.grow([20, 2], stops=[0], choice=GREEDY) == [[8, 0], [6, 7]]
    assert branches.grow([1, 1], stops=[], choice=GREEDY) == [[1], [8]]


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
