"""Localisers: which weights may change. One file per criterion; every one gives a ``Mask``, and any method can take it."""
