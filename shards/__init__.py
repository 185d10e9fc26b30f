"""Datasets of image chips as plain WebDataset tar shards with an index beside them.

Nothing in this package imports torch, so that `planet-shard` answers at once. docs/format.md
describes the files.
"""
