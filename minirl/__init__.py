"""minirl: reinforcement learning for language models, from scratch and small enough to read.

The house, from the ground up; imports go down only: equations (papers, one function each), lm (the language model as a policy) and tasks
(what is learnt), train (one page per algorithm), app (command line, run directory, plots).
"""
