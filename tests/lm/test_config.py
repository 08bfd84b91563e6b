"""minirl/lm/config.py: models that could not be saved are not built."""

import pytest

from minirl.lm.model import ModelConfig


@pytest.mark.parametrize("options, message", [
    ({"vocab_size": True}, "vocab_size is True"),
    ({"max_seq_len": 2 ** 22 + 1}, "max_seq_len is 4194305: at most 4194304"),
    ({"qk_norm": True, "qkv_bias": True}, "no family has"),
    ({"qk_norm": True, "output_bias": True}, "no family has"),
], ids=str)
def test_a_model_that_could_not_be_saved_is_not_built(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"vocab_size": 9, **options})
