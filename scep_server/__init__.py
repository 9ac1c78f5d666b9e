"""SCEP (RFC 8894) on the core that EST uses.

So far the codec alone: `message` opens a pkiMessage, `envelope` its contents, `certrep` writes the answer. The daemon
serves none of it yet.
"""
