"""Equations: pure functions of tensors, one per equation of a paper. Here belongs what can be checked with pencil and paper; no model, no
configuration, no device, no input or output, and nothing of minirl outside this folder.
"""
