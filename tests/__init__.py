"""The tests, in the rooms of the packages; `support` has what helps them.

`tests/test_layers.py` checks the import rules. ``CONTRIBUTING.md`` tells how to run all of this.
"""
