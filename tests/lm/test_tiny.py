"""minirl/lm/tiny.py"""

import torch

from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base, tiny_config
from minirl.lm.tokenizer import TAGS, build_tokenizer

SMALL = TinySizes(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_seq_len=16)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_model_has_the_sizes_and_one_row_for_each_token():
    model, tokenizer = make_base(SMALL, seed=0, device="cpu", words=("<ko>", "<en>"))
    assert model.config == tiny_config(SMALL, tokenizer.vocab_size)
    assert (model.config.hidden_size, model.config.num_layers, model.config.num_heads) == (8, 1, 2)
    for word in (*TAGS, "<ko>", "<en>"):
        assert len(tokenizer.encode(word)) == 1


def test_a_tokenizer_that_is_passed_in_is_used():
    tokenizer = build_tokenizer(special_tokens=("<a>",))
    model, same = make_base(SMALL, seed=0, device="cpu", tokenizer=tokenizer)
    assert same is tokenizer and model.config.vocab_size == tokenizer.vocab_size


def test_the_weights_depend_on_the_seed_and_not_on_the_global_generator():
    torch.manual_seed(1)
    first = weights(make_base(SMALL, seed=0, device="cpu")[0])
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(weights(make_base(SMALL, seed=0, device="cpu")[0]), first)
    assert torch.equal(torch.get_rng_state(), state), "which stays as it was"
    assert not torch.equal(weights(make_base(SMALL, seed=1, device="cpu")[0]), first)


def test_the_weights_of_a_seed_are_those_of_the_global_generator_started_from_it():
    """So that runs of earlier versions can be repeated."""
    model, tokenizer = make_base(SMALL, seed=3, device="cpu")
    torch.manual_seed(derive_seed(3, "init"))
    expected = Transformer(tiny_config(SMALL, tokenizer.vocab_size))
    assert torch.equal(weights(model), weights(expected))
