"""Drift without labels: what the beam and the detector looked like when a version went live, and whether they still do.

moments   what is kept of one sampled frame
beam      frames gathered to windows, without those of a lost beam
window    sums over some hundred frames, from which every statistic and its uncertainty follow
reference the first windows of a version: what is normal for it
detect    a sequential test of every new window against the reference, at a stated rate of false alarms
explain   what changed, in words, with magnitudes and intervals
gain      what to do at once about channels that changed for themselves
report    what the edge publishes of all this, and remembers over a restart
policy    whether a cycle is worth its cluster time
"""
