"""A demo PKI for trying enrolld, and for its tests."""
