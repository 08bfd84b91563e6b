"""minirl/lm/tiny.py"""

import torch

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


def test_the_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = weights(make_base(SMALL, seed=0, device="cpu")[0])
    torch.manual_seed(2)
    assert torch.equal(weights(make_base(SMALL, seed=0, device="cpu")[0]), first)
    assert not torch.equal(weights(make_base(SMALL, seed=1, device="cpu")[0]), first)
