"""The same arithmetic as in `minispec`, faster.

Each module here takes over some of the reference's functions under the same signatures, and
the reference is its oracle: a property test runs over both and reports how far they are apart.
So this package imports `minispec` and never the other way round, except that the command line
loads the backend that it is asked for by name. Whoever wants to understand what is computed
reads `minispec`; whoever wants to know what it can cost reads on here.
"""
