"""Keys that stay in a HSM: made there, named by a PKCS#11 URI (RFC 7512) in the store, proven before they are used.

Import this from `authority.issuance` alone: whoever can name a signer can sign.
"""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ca_core.authority.hsm import Hsm, TokenSession
from ca_core.authority.hsm_private_keys import HsmEcKey, HsmEd25519Key, HsmRsaKey, KeyReference
from ca_core.errors import HsmUnfit

if TYPE_CHECKING:
    import pkcs11

__all__ = [
    "HSM_KINDS",
    "HsmPublicKey",
    "check_mechanisms",
    "destroy_key",
    "load_ra_key",
    "load_signing_key",
    "make_key",
]

T = TypeVar("T")
HsmPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_CURVES: dict[str, tuple[type[ec.EllipticCurve], bytes]] = {
    # the curve, and its OID in DER as CKA_EC_PARAMS has it
    "p-256": (ec.SECP256R1, bytes.fromhex("06082a8648ce3d030107")),
    "p-384": (ec.SECP384R1, bytes.fromhex("06052b81040022")),
    "p-521": (ec.SECP521R1, bytes.fromhex("06052b81040023")),
}
_ED25519 = bytes.fromhex("06032b6570")  # likewise, RFC 8410 3
HSM_KINDS = ("rsa-2048", "rsa-3072", "rsa-4096", *_CURVES, "ed25519")
"""The kinds of keys that can be made in a token. ML-DSA came with PKCS#11 3.2, which few tokens know."""


def check_mechanisms(hsm: Hsm, token: str, kind: str, *, decrypts: bool = False) -> None:
    """See that a token can make a key of this kind and use it, before one is made.

    Raises `HsmUnfit`, `SignerUnavailable`.
    """
    from pkcs11 import Mechanism, MechanismFlag

    if kind not in HSM_KINDS:
        raise HsmUnfit(
            "hsm_kind", f"keys of the kind {kind} are not made in a HSM", f"use one of: {', '.join(HSM_KINDS)}"
        )
    if kind in _CURVES:
        wanted = [(Mechanism.EC_KEY_PAIR_GEN, MechanismFlag.GENERATE_KEY_PAIR), (Mechanism.ECDSA, MechanismFlag.SIGN)]
    elif kind == "ed25519":
        wanted = [
            (Mechanism.EC_EDWARDS_KEY_PAIR_GEN, MechanismFlag.GENERATE_KEY_PAIR),
            (Mechanism.EDDSA, MechanismFlag.SIGN),
        ]
    else:
        wanted = [
            (Mechanism.RSA_PKCS_KEY_PAIR_GEN, MechanismFlag.GENERATE_KEY_PAIR),
            (Mechanism.RSA_PKCS, MechanismFlag.SIGN),
        ]
    if decrypts:
        wanted.append((Mechanism.RSA_PKCS, MechanismFlag.DECRYPT))
    for mechanism, flag in wanted:
        if hsm.is_missing(token, mechanism, flag):  # enforces case 76
            raise HsmUnfit(
                "hsm_mechanism",
                f"the token {token} can't do CKM_{mechanism.name} ({str(flag.name).lower()}), which {kind} needs",
                "use another kind of key or another token; 'pkcs11-tool --list-mechanisms' shows what it can do",
            )


def make_key(
    hsm: Hsm, token: str, name: str, kind: str, *, decrypts: bool = False
) -> tuple[KeyReference, HsmPublicKey]:
    """Make a key pair in a token, which never leaves it: sensitive, not extractable.

    Its label begins with `name` and is nobody else's. It signs; one that `decrypts` does that as well. Raises
    `HsmUnfit`, `SignerUnavailable`.
    """
    check_mechanisms(hsm, token, kind, decrypts=decrypts)
    reference = KeyReference(token, f"{name}-{secrets.token_hex(4)}", secrets.token_bytes(16))

    def make(session: TokenSession) -> HsmPublicKey:
        with session.session.token.open(rw=True) as writing:
            return _generate(writing, reference, kind, decrypts=decrypts)

    return reference, _run(hsm, token, f"make the key {name}", make)


def destroy_key(hsm: Hsm, reference: KeyReference) -> None:
    """Remove a key pair that came to nothing. Raises `HsmUnfit`, `SignerUnavailable`."""
    from pkcs11 import Attribute

    def destroy(session: TokenSession) -> None:
        with session.session.token.open(rw=True) as writing:
            wanted: dict[Attribute, Any] = {Attribute.LABEL: reference.label, Attribute.ID: reference.id}
            for found in list(writing.get_objects(wanted)):
                found.destroy()

    _run(hsm, reference.token, f"remove the key {reference.label}", destroy)


def load_signing_key(
    hsm: Hsm, reference: KeyReference, public_key: HsmPublicKey, name: str
) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    """The signing key of a certificate with `public_key`, after a signature of it was verified.

    Raises `HsmUnfit`, `SignerUnavailable`.
    """
    probe = secrets.token_bytes(32)
    try:
        if isinstance(public_key, rsa.RSAPublicKey):
            rsa_key = HsmRsaKey(hsm, reference, public_key)
            public_key.verify(
                rsa_key.sign(probe, padding.PKCS1v15(), hashes.SHA256()), probe, padding.PKCS1v15(), hashes.SHA256()
            )
            return rsa_key
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            edwards_key = HsmEd25519Key(hsm, reference, public_key)
            public_key.verify(edwards_key.sign(probe), probe)
            return edwards_key
        ec_key = HsmEcKey(hsm, reference, public_key)
        public_key.verify(ec_key.sign(probe, ec.ECDSA(hashes.SHA256())), probe, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as exc:
        # enforces case 76
        raise _mismatch(name) from exc
    return ec_key


def load_ra_key(hsm: Hsm, reference: KeyReference, public_key: rsa.RSAPublicKey, name: str) -> "HsmRsaKey":
    """The key of an RA certificate with `public_key`, after it opened what was encrypted to that.

    Raises `HsmUnfit` for one that can't decrypt, `SignerUnavailable`.
    """
    load_signing_key(hsm, reference, public_key, name)
    key = HsmRsaKey(hsm, reference, public_key)
    if not key.can_decrypt(padding.PKCS1v15()):  # enforces case 76
        raise HsmUnfit(
            "hsm_cannot_decrypt",
            f"the RA key {name} can't decrypt, so no SCEP request could be opened",
            "let the key decrypt (CKA_DECRYPT, CKM_RSA_PKCS) in the HSM, or turn SCEP off in the realm",
        )
    key.learn_oaep()
    return key


def _generate(writing: "pkcs11.Session", reference: KeyReference, kind: str, *, decrypts: bool) -> HsmPublicKey:
    import pkcs11
    from pkcs11 import Attribute, KeyType, MechanismFlag

    uses = MechanismFlag.SIGN | MechanismFlag.VERIFY
    if decrypts:
        uses |= MechanismFlag.DECRYPT | MechanismFlag.ENCRYPT
    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    named: dict[str, Any] = {
        "id": reference.id,
        "label": reference.label,
        "store": True,
        "capabilities": uses,
        "private_template": template,
    }
    if kind in _CURVES:
        curve, parameters = _CURVES[kind]
        domain = writing.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: parameters}, local=True)
        public, private = domain.generate_keypair(**named)
        # CKA_EC_POINT is the "DER-encoding of ANSI X9.62 ECPoint value Q", an OCTET STRING; some give the point bare.
        point = public[Attribute.EC_POINT]
        length = 1 + 2 * ((curve().key_size + 7) // 8)
        made: HsmPublicKey = ec.EllipticCurvePublicKey.from_encoded_point(curve(), point[-length:])
    elif kind == "ed25519":
        domain = writing.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519}, local=True)
        public, private = domain.generate_keypair(**named)
        made = ed25519.Ed25519PublicKey.from_public_bytes(public[Attribute.EC_POINT][-32:])
    else:
        public, private = writing.generate_keypair(KeyType.RSA, int(kind.removeprefix("rsa-")), **named)
        modulus, exponent = (int.from_bytes(public[a], "big") for a in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
        made = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    if not private[pkcs11.Attribute.SENSITIVE] or private[pkcs11.Attribute.EXTRACTABLE]:
        private.destroy()
        public.destroy()
        raise HsmUnfit(
            "hsm_extractable",
            f"the token {reference.token} makes keys that can be taken out of it",
            "use another token",
        )
    return made


def _run(hsm: Hsm, token: str, what: str, job: Callable[[TokenSession], T]) -> T:
    try:
        return hsm.run(token, job)
    except RuntimeError as exc:
        raise HsmUnfit(
            "hsm_refused",
            f"the token {token} did not {what} ({str(exc) or type(exc).__name__})",
            "look at the HSM's log, and whether it is full or read-only",
        ) from exc


def _mismatch(name: str) -> HsmUnfit:
    return HsmUnfit(
        "hsm_key_mismatch",
        f"the key {name} in the HSM does not belong to its certificate",
        "name the token that the realm was made in, or restore it",
    )
