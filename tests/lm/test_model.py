"""minirl/lm/model.py: nothing looks ahead, padding and the cache change nothing, and each part
against numbers worked out by hand."""

import math

import pytest
import torch

from minirl.lm.cache import KVCache
from minirl.lm.model import ModelConfig, RMSNorm, Transformer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def ids(*shape, seed=1, vocab=23):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def left_pad(rows, pad=0):
    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return tokens, torch.tensor([width - len(row) for row in rows])


# what a token sees

@torch.no_grad()
def test_no_token_looks_ahead(model):
    tokens = ids(2, 10)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 23
    a, b = model.hidden(tokens), model.hidden(changed)
    torch.testing.assert_close(a[:, :6], b[:, :6], **CLOSE)
    # and every later token does look back
    assert ((a[:, 6:] - b[:, 6:]).abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_the_order_of_the_past_matters(model):
    a, b = (model.hidden(torch.tensor([row])) for row in ([1, 2, 3, 4], [2, 1, 3, 4]))
    assert (a[:, -1] - b[:, -1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(4, 1, 1, 1, 1), (3, 4, 1), (1, 7)], ids=str)
def test_cached_decode_equals_the_full_forward(model, pieces):
    tokens = ids(3, 8)
    cache = KVCache.empty(model.config, 3, 8)
    parts = [model.hidden(piece, cache=cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), **CLOSE)
    assert cache.length == 8


@torch.no_grad()
def test_cached_decode_with_left_padding_equals_each_row_by_itself(model, ragged):
    """Position ids counted from the padded slot, or padding seen as keys, move every log-prob of a
    short prompt in a mixed batch."""
    tokens, padding = left_pad(ragged, pad=22)
    more = ids(len(ragged), 5)
    width = tokens.shape[1]
    cache = KVCache.empty(model.config, len(ragged), width + 5)
    pieces = [tokens, more[:, :2], more[:, 2:3], more[:, 3:4], more[:, 4:5]]
    got = torch.cat([model.hidden(piece, cache=cache, starts=padding) for piece in pieces], dim=1)
    assert got.isfinite().all()
    for i, row in enumerate(ragged):
        alone = model.hidden(torch.tensor([row + more[i].tolist()]))[0]
        torch.testing.assert_close(got[i, width - len(row):], alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing_at_real_slots(model, ragged, side):
    width, pad = 9, 22
    for row in ragged:
        n = width - len(row)
        fill = [pad] * n
        if side == "left":
            got = model.hidden(torch.tensor([fill + row]), starts=torch.tensor([n]))[0, n:]
        else:
            got = model.hidden(torch.tensor([row + fill]))[0, :len(row)]
        torch.testing.assert_close(got, model.hidden(torch.tensor([row]))[0], **CLOSE)


@torch.no_grad()
def test_cache_rows_can_be_repeated_dropped_and_reordered(model):
    tokens, new = ids(2, 4), ids(3, 1, seed=2)
    source = KVCache.empty(model.config, 2, 6)
    model.hidden(tokens, cache=source)
    rows = torch.tensor([1, 0, 1])
    room = KVCache.empty(model.config, 4, 6)
    # three rows of a larger cache
    cache = KVCache([x[:3] for x in room.keys], [x[:3] for x in room.values], length=0)
    cache.take(source, rows)
    got = model.hidden(new, cache=cache)[:, -1]
    past = torch.cat([tokens[rows], new], dim=1)
    torch.testing.assert_close(got, model.hidden(past)[:, -1], **CLOSE)
    cache.move(torch.tensor([2, 1]), torch.tensor([0, 2]))
    past = past[[2, 1, 1]]
    got = model.hidden(new, cache=cache)[:, -1]
    expected = model.hidden(torch.cat([past, new], dim=1))[:, -1]
    torch.testing.assert_close(got, expected, **CLOSE)


# grouped queries

@torch.no_grad()
def test_grouped_model_equals_a_full_model_with_repeated_weights(make_model):
    grouped = make_model("qwen2")
    full = make_model("qwen2", num_kv_heads=4)
    weights = grouped.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            heads = weights[name].unflatten(0, (2, 8))  # (K, D) or (K, D, d)
            weights[name] = torch.cat([heads[0], heads[0], heads[1], heads[1]])
    full.load_state_dict(weights)
    torch.testing.assert_close(grouped.hidden(ids(2, 7)), full.hidden(ids(2, 7)), **CLOSE)


# RMSNorm, dropout, tying

def test_rmsnorm_by_hand():
    """x = (3, 4): mean square 12.5, root 3.5355; 3 / 3.5355 = 0.8485, 4 / 3.5355 = 1.1314, times
    the weight (1, 2)."""
    norm = RMSNorm(2, 0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    x = torch.tensor([[3.0, 4.0], [-6.0, -8.0]])
    expected = torch.tensor([[0.8485, 2.2627], [-0.8485, -2.2627]])
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=0)
    assert RMSNorm(2, 3.0)(torch.ones(2)).tolist() == [0.5, 0.5]    # eps in the root: 1/sqrt(1+3)
    assert RMSNorm(2, 1e-6)(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_rmsnorm_is_computed_in_float32():
    """1000² is beyond float16 (65504): a norm in the input's dtype divides by infinity and gives
    0."""
    y = RMSNorm(4, 1e-6)(torch.full((4,), 1000.0, dtype=torch.float16))
    assert y.dtype == torch.float16 and y.tolist() == [1.0] * 4


def test_dropout_is_for_training_alone(make_model):
    """Dropout left on while the log-probs are recomputed makes the first ratio differ from 1."""
    model, tokens = make_model(dropout=0.3), ids(2, 6)
    evaluated = model.hidden(tokens)
    torch.testing.assert_close(evaluated, make_model(dropout=0.0).hidden(tokens))
    model.train()
    assert not torch.allclose(model.hidden(tokens), model.hidden(tokens))
    model.set_dropout(0.0)
    assert torch.equal(model.hidden(tokens), evaluated)
    model.set_dropout(0.3)
    assert not torch.allclose(model.hidden(tokens), evaluated)


def test_tied_embeddings_share_storage(make_model):
    def addresses(model):
        return model.lm_head.weight.data_ptr(), model.embed_tokens.weight.data_ptr()

    tied, untied = make_model("grouped"), make_model("untied")
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert len(set(addresses(tied.to(torch.bfloat16)))) == 1
    assert len(set(addresses(untied))) == 2


@pytest.mark.parametrize("options, head, in_a_block", [
    ({}, 0, 0),
    ({"tie_embeddings": False}, 20, 0),
    ({"qkv_bias": True, "output_bias": True}, 0, 4 + 2 + 2 + 4),
    ({"qk_norm": True}, 0, 2 + 2),
], ids=str)
def test_number_of_parameters_by_hand(options, head, in_a_block):
    """V d = 20, head 20; a block: q 16, k and v 8 each, o 16, gate, up and down 12 each, two norms
    4 each; a last norm 4."""
    config = ModelConfig(5, hidden_size=4, num_layers=3, num_heads=2, num_kv_heads=1,
                         intermediate_size=3, **options)
    block = 16 + 8 + 8 + 16 + 3 * 12 + 2 * 4 + in_a_block
    assert Transformer(config).num_parameters() == 20 + head + 3 * block + 4


def test_fresh_weights_are_small_and_biases_zero():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(200, hidden_size=64, num_layers=2, qkv_bias=True))
    block = model.layers[0]
    assert model.embed_tokens.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    # 0.02 / sqrt(2 * 2 layers)
    assert block.mlp.down_proj.weight.detach().std() == pytest.approx(0.01, rel=0.05)
    assert block.self_attn.q_proj.bias.abs().max() == 0


def test_forward_is_the_head_on_hidden_and_every_parameter_learns(model):
    logits = model(ids(2, 6))
    expected = model.hidden(ids(2, 6)) @ model.lm_head.weight.T
    torch.testing.assert_close(logits, expected, **CLOSE)
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@torch.no_grad()
def test_a_head_gets_the_hidden_states_and_the_output_matrix(model):
    tokens = ids(2, 6)
    hidden, weight = model(tokens, head=lambda *args: args)
    assert torch.equal(hidden, model.hidden(tokens))
    assert torch.equal(weight, model.lm_head.weight)
    assert hidden.shape == (2, 6, 32) and weight.shape == (23, 32)


# errors and number formats

@pytest.mark.parametrize("wrong, message", [
    ({"hidden_size": 30}, "hidden_size 30 .*num_heads 4"),
    ({"num_kv_heads": 3}, "num_heads 4 .*num_kv_heads 3"),
    ({"num_kv_heads": 0}, "num_kv_heads is 0"),
    ({"num_heads": 0}, "num_heads is 0"),
    ({"num_heads": -2}, "num_heads is -2"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"num_layers": 0}, "num_layers is 0"),
    ({"max_seq_len": 1.5}, "max_seq_len is 1.5"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"dropout": -0.1}, "dropout is -0.1"),
], ids=str)
def test_wrong_sizes_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"vocab_size": 10, "hidden_size": 32, "num_heads": 4, **wrong})


def test_context_overflow_raises(make_model):
    model = make_model(max_seq_len=6)
    model.hidden(ids(1, 6))
    with pytest.raises(ValueError, match="7 tokens do not fit .*6"):
        model.hidden(ids(1, 7))
    cache = KVCache.empty(model.config, 1, 8)
    model.hidden(ids(1, 6), cache=cache)
    with pytest.raises(ValueError, match="7 tokens"):
        model.hidden(ids(1, 1), cache=cache)
    # padding takes no position
    assert model.hidden(ids(2, 8), starts=torch.tensor([2, 3])).isfinite().all()
    with pytest.raises(ValueError, match="7 tokens"):
        model.hidden(ids(2, 8), starts=torch.tensor([1, 3]))


def test_a_bfloat16_model_keeps_its_positions_apart(make_model):
    """bfloat16 holds 8 bits: 257 rounds to 256. Tables (or positions) made in it give neighbouring
    tokens one place."""
    model = make_model(max_seq_len=300)
    before = model.rope.cos.clone()
    model.to(torch.bfloat16)
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.rope.cos.dtype == model.rope.sin.dtype == torch.float32
    assert torch.equal(model.rope.cos, before)
    cos, sin = model.rope(torch.tensor([256, 257]), torch.float32)
    assert not torch.equal(cos[0], cos[1]) and not torch.equal(sin[0], sin[1])
    assert cos[1, 0, 0] == pytest.approx(math.cos(257), abs=1e-4)
    hidden = model.hidden(ids(1, 8))
    assert hidden.dtype == torch.bfloat16
    expected = make_model(max_seq_len=300).hidden(ids(1, 8))
    torch.testing.assert_close(hidden.float(), expected, atol=0.2, rtol=0.1)
    assert torch.equal(model.float().rope.cos, before)


@torch.no_grad()
def test_float64_works(model):
    single = model.hidden(ids(2, 6))
    model.double()
    double = model.hidden(ids(2, 6))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)
