"""SCEP (RFC 8894) on the core that EST uses. Nothing is served here yet: see the CHANGELOG."""
