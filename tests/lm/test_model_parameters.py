"""Parameters are read inside the forward of the module that owns them, as FSDP needs it.

FSDP gathers a module's parameters when its forward begins, frees them when it ends, and gathers
them again when its backward begins. Here parameters are NaN outside of these times.
"""

import pytest
import torch

from minirl.lm.heads import ScalarModel, rollout_values
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from tests.lm.models import build_model

OPTIONS = {"group": 3, "max_new_tokens": 10, "eos_id": [0, 1, 2], "pad_id": 5}


class Emptied:
    """Parameters that are NaN, in the same memory, while the module does not run."""

    def __init__(self, module, parameters):
        self.values = [(p, p.detach().clone()) for p in parameters]
        module.register_forward_pre_hook(lambda *_: self.fill())
        module.register_forward_hook(lambda *_: self.empty())
        module.register_full_backward_pre_hook(lambda *_: self.fill())
        self.empty()

    def empty(self):
        for p, _ in self.values:
            p.data.fill_(float("nan"))

    def fill(self):
        for p, value in self.values:
            p.data.copy_(value)


def empty_outside_forward(model):
    """Apply Emptied to each block, and to the model for what is in no block."""
    blocks = [list(block.parameters()) for block in model.layers]
    in_blocks = {id(p) for block in blocks for p in block}
    own = [p for p in model.parameters() if id(p) not in in_blocks]
    pairs = zip([model, *model.layers], [own, *blocks], strict=True)
    for module, parameters in pairs:
        Emptied(module, parameters)


def rollouts_of(model, **changes):
    generator = torch.Generator().manual_seed(0)
    return sample(model, [[1, 2, 3], [4]], generator=generator, **{**OPTIONS, **changes})


pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(params=["qwen3", "biased", "grouped"])
def models(request):
    """A model, and the same one whose parameters are empty outside of forward."""
    whole, emptied = build_model(request.param), build_model(request.param)
    empty_outside_forward(emptied)
    assert all(p.isnan().all() for p in emptied.parameters())
    return whole, emptied


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling(models, dtype, temperature):
    with compute_in(dtype, torch.device("cpu")):
        a, b = (rollouts_of(model, temperature=temperature) for model in models)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.behavior_logp, b.behavior_logp)


def test_logits_and_hidden_states(models):
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert torch.equal(*(model(tokens) for model in models))
    assert torch.equal(*(model.hidden(tokens) for model in models))


def test_scoring_and_its_gradient(models):
    rollouts = rollouts_of(models[0])
    results = []
    for model in models:
        logp, entropy = token_logprobs(model, rollouts.tokens, mask=rollouts.mask,
                                       return_entropy=True)
        grads = torch.autograd.grad(logp.sum() + 0.1 * entropy.sum(), list(model.parameters()))
        frozen = rollout_logprobs(model, rollouts, token_budget=40)
        results.append([logp, entropy, frozen, *grads])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_values_and_their_gradient(models):
    rollouts = rollouts_of(models[0])
    results = []
    for model in models:
        torch.manual_seed(0)
        scalar = ScalarModel(model)
        values, end = scalar(rollouts.tokens, rollouts.mask)
        used = [p for p in scalar.parameters() if p is not model.lm_head.weight or
                model.config.tie_embeddings]
        grads = torch.autograd.grad(values.square().sum() + end.sum(), used)
        results.append([values, end, *rollout_values(scalar, rollouts, token_budget=40), *grads])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
