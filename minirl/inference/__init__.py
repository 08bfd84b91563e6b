"""Asking a policy without training it. Here belongs what samples, decodes and judges completions in
one call, what searches for a good one with a verifier, and what turns completions into an
evaluation, a vote, a choice, or text and figures that show them. No gradient, no optimizer and no
file but a figure's: training pages stand above and call this room, equations stand below.
"""
