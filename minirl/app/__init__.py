"""What a person touches. Here belong the command line, the run directory, the one runner that makes
runs of pages and of a pipeline's stages, figures, and what commands print. No equation, no loss and
no training loop: those stand in the rooms below, none of which imports from here.
"""
