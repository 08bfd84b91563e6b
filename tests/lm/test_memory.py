"""minirl/lm/memory.py: what would not fit is refused before it is made."""

import pytest
import torch

from minirl.lm import memory
from minirl.lm.memory import check_room, parameters_of, sampling_bytes
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.sampling import sample

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_matrices(tied):
    config = ModelConfig(50, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
                         intermediate_size=40, tie_embeddings=tied)
    matrices = sum(p.numel() for p in Transformer(config).parameters() if p.dim() == 2)
    assert parameters_of(config) == matrices


def test_sampling_holds_keys_values_logits_and_draws():
    """Per row: for each token 2 layers x 2 (keys, values) x 16 numbers, and 6 more; 3 times 10
    logits."""
    config = ModelConfig(10, hidden_size=16, num_layers=2, num_heads=2)
    assert sampling_bytes(config, rows=5, length=7) == 4 * 5 * (7 * (2 * 2 * 16 + 6) + 3 * 10)


def test_more_than_the_machine_has_is_refused():
    check_room(1e6, CPU, "a small thing")
    message = r"training 9 weights would take 9,095 GiB, and the machine has \d+: take fewer"
    with pytest.raises(ValueError, match=message):
        check_room(9095 * 2 ** 30, CPU, "training 9 weights")


def test_the_whole_memory_is_enough(monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 ** 31)
    check_room(2 ** 31, CPU, "a model")
    message = "a model would take 2 GiB, and the machine has 2: give a smaller one"
    with pytest.raises(ValueError, match=message):
        check_room(2 ** 31 + 1, CPU, "a model", "give a smaller one")


def test_a_million_million_completions_are_not_begun():
    """They once ended in a traceback of the allocator's, or took the machine with them."""
    model = Transformer(ModelConfig(10, hidden_size=16, num_layers=1, num_heads=2))
    message = "sampling 1,000,000,000,000 completions at once would take"
    with pytest.raises(ValueError, match=message):
        sample(model, [[1]], group=10 ** 12, max_new_tokens=4, eos_id=0, pad_id=0)
