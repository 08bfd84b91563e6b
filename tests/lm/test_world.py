"""minirl/lm/world.py, and a model whose parameters two processes share (FSDP)."""

import contextlib
import os
import socket
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from minirl.equations.entropy import entropy_mask
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import (
    AGGREGATIONS,
    aggregate,
    explained_variance,
    masked_whiten,
    normaliser,
)
from minirl.lm import world
from minirl.lm.decoding import is_sharded
from minirl.lm.heads import ScalarModel
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from minirl.lm.tiny import TinySizes, make_base
from minirl.train import metrics
from minirl.train.metrics import NonFiniteError, Sums
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import TrainState, apply_update, make_optimizer
from tests.lm.models import build_model

STARTS, ENDS = torch.tensor([2, 2, 3, 1, 2, 4]), torch.tensor([5, 9, 4, 7, 8, 6])
SLOTS = torch.arange(9)
MASK = (SLOTS >= STARTS[:, None]) & (SLOTS < ENDS[:, None])
TOKENS = torch.randint(23, MASK.shape, generator=torch.Generator().manual_seed(0))
ADV = torch.tensor([1.0, -0.5, 2.0, 0.25, -1.0, 0.5])
SMALL = TinySizes(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_seq_len=16)
OPTIONS = {"group": 3, "max_new_tokens": 10, "eos_id": [0, 1, 2], "pad_id": 5}


def gradient(model, rows, how, total):
    """The gradient of the loss of some rows, divided by `total`."""
    logp = token_logprobs(model, TOKENS[rows], mask=MASK[rows])
    surrogate = clipped_surrogate(logp, logp.detach(), ADV[rows, None].expand_as(logp))
    model.zero_grad()
    (-aggregate(surrogate, MASK[rows], how, total=total)).backward()
    return [p.grad for p in model.parameters()]


def test_there_is_one_process_unless_torch_distributed_is_initialised():
    x = torch.tensor([1.0, 2.0])
    assert (world.size(), world.rank()) == (1, 0)
    assert world.total(x) is x and world.total(3) == 3
    assert world.anywhere(True) and not world.anywhere(False)
    assert world.finite([x]) and not world.finite([x, torch.tensor([1.0, float("nan")])])


def test_the_gradients_of_one_process_stay_as_they_are():
    model = nn.Linear(2, 1)
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    world.add_gradients(model)
    assert model.weight.grad.tolist() == [[1.0, 2.0]]


def test_one_process_has_the_whole_batch():
    x = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    assert world.share([1, 2, 3]) == [1, 2, 3] and world.place() == ()
    assert world.gather(x) == [x] and world.together(x) is x and world.own(x, 2) is x
    assert world.flat([1, 2]) == [1, 2] and world.mean(x) == 1.75
    assert torch.equal(world.of_all(lambda x: x - x.mean())(x), x - 1.75)
    assert world.over_tokens(masked_whiten) is masked_whiten
    parts = world.minibatches(torch.arange(2).tensor_split(3))
    assert [(part.tolist(), rows) for part, rows in parts] == [([0], 1), ([1], 1)]  # none is empty
    assert [part.tolist() for part in world.split(torch.arange(5), 2)] == [[0, 1], [2, 3], [4]]
    world.barrier()


def test_without_torchrun_a_block_is_as_it_would_be_outside(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with world.joined():
        assert not dist.is_initialized()


def test_an_error_of_one_process_alone_is_its_own():
    """A reward function may fail to connect: no other process has to do with it."""
    with pytest.raises(RuntimeError, match="^connection refused$"), world.noticing(": go on"):
        raise RuntimeError("connection refused")


def test_a_block_joins_the_processes_that_torchrun_starts(tmp_path, monkeypatch):
    """There the backend has no name: gloo for the CPU, and NCCL for GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    multiprocessing.spawn(joined_process, nprocs=2)


def joined_process(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    with world.joined():
        assert (world.size(), world.rank()) == (2, rank)
        model = world.shard(build_model("qwen3"))
        token_logprobs(model, TOKENS, mask=MASK).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    assert world.size() == 1


def test_two_processes(tmp_path):
    """All of it in one pair of processes, as a pair takes seconds to start."""
    multiprocessing.spawn(one_process, args=(str(tmp_path / "store"),), nprocs=2)


def one_process(rank, store):
    torch.set_num_threads(1)
    alone = two_steps()    # before there are two
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        check_totals(rank)
        check_shares(rank)
        check_gradients(rank)
        check_training(alone)
        check_an_overflow(rank)
        check_a_sharded_model()
    finally:
        dist.destroy_process_group()


def check_totals(rank):
    assert (world.size(), world.rank()) == (2, rank)
    number, share = world.total(rank + 1), world.total(rank + 0.5)
    assert (number, type(number)) == (3, int) and (share, type(share)) == (2.0, float)
    x = torch.tensor([rank, 10.0], requires_grad=True)
    total = world.total(x)
    assert total.tolist() == [1.0, 20.0] and not total.requires_grad
    assert x.tolist() == [rank, 10.0]


def check_shares(rank):
    """Five rows: process 0 has two of them, process 1 three."""
    mine = world.share(list("abcde"))
    assert mine == (list("cde") if rank else list("ab")) and world.place() == (rank, 2)
    assert world.share(["a"]) == (["a"] if rank else [])
    assert world.gather(mine) == [["a", "b"], ["c", "d", "e"]] and world.flat(mine) == list("abcde")
    assert world.gather({"x": (rank,)})[1] == {"x": (1,)}
    rows = torch.arange(5.0)[:, None]
    own = rows[2:] if rank else rows[:2]
    assert torch.equal(world.together(own), rows) and world.mean(own) == 2.0
    assert torch.equal(world.own(rows, len(own)), own)
    assert torch.equal(world.of_all(lambda x: x - x.mean())(own), own - 2)

    x, mask = ADV[:, None] * torch.arange(9), MASK                       # (6, 9)
    here = slice(2, 6) if rank else slice(0, 2)
    whitened = world.over_tokens(masked_whiten)(x[here], mask[here])
    torch.testing.assert_close(whitened, masked_whiten(x, mask)[here])
    high = world.over_tokens(partial(entropy_mask, quantile=0.3))(x[here], mask[here])
    assert torch.equal(high, entropy_mask(x, mask, quantile=0.3)[here])
    explained = world.over_tokens(explained_variance)(x[here], x[here].square(), mask[here])
    torch.testing.assert_close(explained, explained_variance(x, x.square(), mask))

    # one row and none, three and one, none and none: the last is left out
    counts = ((1, 3, 0), (0, 1, 0))[rank]
    minibatches = list(world.minibatches(torch.arange(count) for count in counts))
    assert [(len(part), rows) for part, rows in minibatches] == list(
        zip(counts[:2], (1, 4), strict=True))
    assert len(list(world.minibatches(torch.arange(4 if rank else 0).split(2)))) == 2
    assert list(map(len, world.split(torch.arange(5), 3))) == [2, 2, 1]  # of 3: two here


def check_gradients(rank):
    """Half of the rows in each process, each half divided by the number of both, and the gradients
    added: the gradient of all rows. A process's own number would weight its few tokens too much."""
    model = build_model("qwen3").double()
    mine, every = torch.arange(rank, 6, 2), torch.arange(6)
    for how in AGGREGATIONS:
        total = world.total(normaliser(MASK[mine], how, max_length=8))
        grads = gradient(model, mine, how, total)
        world.add_gradients(model)
        together = [grad.clone() for grad in grads]
        expected = gradient(model, every, how, normaliser(MASK, how, max_length=8))
        for a, b in zip(together, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def two_steps(shard=lambda model: model):
    """Two steps of train_sft: all weights of a tiny model, and the norms of its gradients."""
    model, tokenizer = make_base(SMALL, seed=0, device="cpu")
    model, pairs = shard(model), [("1+1=", "2"), ("12+30=", "42"), ("9+9=", "18"), ("7+0=", "7")]
    norms = []
    train_sft(model, tokenizer, pairs, SFTConfig(batch_size=2, warmup_steps=0), seed=0,
              log=lambda step, metrics: norms.append(metrics["grad_norm"]))
    assert len(norms) == 2
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return nn.utils.parameters_to_vector(whole).detach(), torch.tensor(norms)


def check_training(alone):
    """Each process trains on its share: the same weights as with one process, and in both.

    The norms say more, as AdamW's steps are the same for half of the gradient.
    """
    for shard in (lambda model: model, world.shard):
        weights, norms = two_steps(shard)
        torch.testing.assert_close(weights, alone[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(norms, alone[1], rtol=1e-6, atol=0)
        assert torch.equal(*world.gather(weights))


def check_an_overflow(rank):
    """A gradient that is infinite in one process, in its part of a sharded weight: both processes
    skip the step and lower the scale. Process 0 took the step, and then waited for the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(1, 2, bias=False), mesh=init_device_mesh("cpu", (2,)))
    before = model.weight.full_tensor().clone()
    with compute_in("float16", torch.device("cpu")):
        state = TrainState(model, make_optimizer(model, SFTConfig(lr=0.1)))
    for overflow, scale in ((True, 4.0), (False, 2.0)):
        state.scaler.value = scale
        state.backward(model(torch.ones(1, 1)).sum(), [0], ["a"])
        if overflow and rank == 1:
            model.weight.grad.to_local().fill_(float("inf"))
        sums = Sums()
        apply_update(state, 0.1, 1.0, sums)
        assert sums.means()["frac_skipped_steps"] == overflow
        assert state.scaler.value == (2.0 if overflow else scale)
        assert torch.equal(model.weight.full_tensor(), before) == overflow
    grads = [torch.full((2,), float("nan") if rank == 0 else 1.0)]
    assert not world.finite(grads), "in process 1, too"
    plain = nn.Linear(1, 1)
    plain.weight.grad = torch.full((1, 1), float("inf") if rank == 1 else 1.0)
    with (pytest.raises(NonFiniteError, match="the gradient on these rows is not finite")
          if rank == 1 else contextlib.nullcontext()):  # torchrun ends the others
        metrics.check_gradients([plain], 1, [0], ["a"])


def check_a_sharded_model():
    """Each process has half of every parameter. FSDP gathers a module's when its forward begins."""
    whole, shards = build_model("qwen3"), world.shard(build_model("qwen3"))
    assert is_sharded(shards) and not is_sharded(whole)

    prompts = [[1, 2, 3], [4]]
    a, b = (sample(model, prompts, generator=torch.Generator().manual_seed(0), **OPTIONS)
            for model in (whole, shards))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.behavior_logp, b.behavior_logp)
    scores = []
    for model in (whole, shards):
        logp, entropy = token_logprobs(model, TOKENS, mask=MASK, return_entropy=True)
        (logp.sum() + entropy.sum()).backward()
        scores.append((logp.detach(), entropy.detach()))
    assert all(torch.equal(x, y) for x, y in zip(*scores, strict=True))
    for p, q in zip(whole.parameters(), shards.parameters(), strict=True):
        torch.testing.assert_close(q.grad.full_tensor(), 2 * p.grad, rtol=1e-5, atol=1e-6)
    values = []
    for model in (whole, shards):
        torch.manual_seed(0)
        values.append(ScalarModel(model)(TOKENS, MASK))
    assert all(torch.equal(x, y) for x, y in zip(*values, strict=True))
