"""Metrics: pure functions of an ``Audit``, that is of logits, labels, membership and measured facts.

A metric never sees a model or a method, so logits on disk made by any framework can be audited. One file a
family; ``statistics`` holds the intervals and the two anchors every value is read against: what another set of
oracles scores (floor, 0 when rescaled) and what doing nothing scores (ceiling, 1).
"""
