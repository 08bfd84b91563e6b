"""For people who test their own losses: the oracle, golden tables, the conformance check, and the
index of equations and their tests. It knows equations and no model; whoever trains or samples
belongs in the rooms above.
"""
