"""From the web to a mathematical corpus, as in DeepSeekMath: a text classifier, rounds of mining,
and the removal of benchmarks. Here belongs what reads, scores and writes pages, as streams. It
knows no model; what learns from a corpus stands in train/.
"""
