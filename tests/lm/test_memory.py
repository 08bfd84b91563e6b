"""minirl/lm/memory.py: what would not fit is refused before it is made."""

import pytest
import torch

from minirl.lm import memory
from minirl.lm.memory import available_bytes, check_room, parameters_of, sampling_bytes
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


MEMINFO = "MemTotal:  9000 kB\nMemAvailable:  5000 kB\n"


@pytest.mark.parametrize("group, files, room", [
    ("0::/", {}, 5000),
    ("0::/job", {"job/memory.max": "max", "job/memory.current": "4096"}, 5000),
    ("0::/job", {"job/memory.max": "2048000", "job/memory.current": "1024000",
                 "job/memory.stat": "anon 5\ninactive_file 102400\n"}, 1100),
    ("0::/of/the/host", {"memory.max": "2048000", "memory.current": "2048000",
                         "memory.stat": "inactive_file 0\n"}, 0),
    ("9:cpu:/\n4:memory:/job", {"memory/job/memory.limit_in_bytes": "1024000",
                                "memory/job/memory.usage_in_bytes": "1024000",
                                "memory/job/memory.stat": "total_inactive_file 1024\n"}, 1),
])
def test_what_is_available_is_within_the_container(group, files, room, tmp_path):
    """A copy that fits the machine and not its container would end the process."""
    (tmp_path / "self").mkdir()
    for name, text in {"meminfo": MEMINFO, "self/cgroup": group, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path, tmp_path) == 1024 * room


def test_where_the_system_does_not_say_nothing_is_available(tmp_path):
    assert available_bytes(tmp_path, tmp_path) == 0


def test_a_million_million_completions_are_not_begun():
    """They once ended in a traceback of the allocator's, or took the machine with them."""
    model = Transformer(ModelConfig(10, hidden_size=16, num_layers=1, num_heads=2))
    message = "sampling 1,000,000,000,000 completions at once would take"
    with pytest.raises(ValueError, match=message):
        sample(model, [[1]], group=10 ** 12, max_new_tokens=4, eos_id=0, pad_id=0)
