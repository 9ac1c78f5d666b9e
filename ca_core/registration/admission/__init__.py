"""The means by which a requester proves who it is, one module each.

Each takes the realm and what the peer offered, and returns what it proves, or raises a `Refusal` that says why not.
"""
