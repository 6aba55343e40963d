"""minispec: exact speculative decoding with a pruned draft vocabulary, to be read and measured."""
