"""The language model as a policy: model, heads, tokenizer, sampling, log-probs, rollouts,
checkpoints, precision, tiny models, several processes; and, for people, what a model wrote as safe
text, and how far long work is.

Here belongs what makes the model fast and safe to keep, so that training pages need not. No
objective, no reward and no training loop belongs here.
"""
