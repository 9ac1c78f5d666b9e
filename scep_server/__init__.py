"""SCEP (RFC 8894): the protocol between network gear and the CA core."""
