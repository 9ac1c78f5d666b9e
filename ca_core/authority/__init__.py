"""The CA, which signs: issuers, issuance, revocation, CRLs. Only `issuance` reaches a signing key."""
