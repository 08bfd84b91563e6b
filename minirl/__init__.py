"""minirl: reinforcement learning for language models, from scratch and small enough to read.

The house from the ground up; imports go down only:

    equations    the papers' equations, one function each
    lm, tasks    the language model as a policy; what is learnt and how it is scored
    inference    asking a policy without training it
    testing      for people who test their own losses
    train        one page per algorithm, and pipelines whose lines are pages
    app          command line, run directory, figures
"""
