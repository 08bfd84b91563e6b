"""For people who test their own losses: the oracle, golden tables, the conformance check, the
running example of the tutorials, and the index of equations and their tests. Here belongs what has
a known answer; nothing here trains.
"""
