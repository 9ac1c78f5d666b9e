"""The keys, wherever they are: sealed in the store, or in a HSM and only referred to there.

Import this from `authority.issuance` alone: whoever can name a signer can sign.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from sqlalchemy import bindparam, func, select

from ca_core.authority import hsm_keys
from ca_core.authority.hsm import Hsm, require_library
from ca_core.authority.hsm_private_keys import KeyReference
from ca_core.authority.keys import HsmRaKey, HsmSigner, Signer, SoftwareRaKey, software_signer
from ca_core.authority.new_key import InToken, NewKey
from ca_core.authority.sealing import PrivateKey, UnlockKey
from ca_core.errors import HsmUnfit, InternalError, SealingFailed, Unavailable
from ca_core.model import RaKey
from ca_core.public_key import PublicKey, spki_sha256
from ca_core.records.query import Query
from ca_core.records.schema import sealed_key
from ca_core.records.store import Store

_LOG = logging.getLogger(__name__)

_SEALED = func.substr(sealed_key.c.pkcs8, 1, 7) != b"pkcs11:"
_SOME_KEYS = Query(select(sealed_key.c.name, sealed_key.c.pkcs8).where(_SEALED).order_by(sealed_key.c.id).limit(16))
_KEY = Query(
    select(sealed_key.c.pkcs8).where(
        sealed_key.c.name == bindparam("name"), sealed_key.c.purpose == bindparam("purpose")
    )
)


_MAKE: dict[str, Callable[[], PrivateKey]] = {
    **{f"rsa-{bits}": functools.partial(rsa.generate_private_key, 65537, bits) for bits in (2048, 3072, 4096)},
    "p-256": functools.partial(ec.generate_private_key, ec.SECP256R1()),
    "p-384": functools.partial(ec.generate_private_key, ec.SECP384R1()),
    "p-521": functools.partial(ec.generate_private_key, ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}


async def check_token(hsm: Hsm | None, token: str, kinds: Sequence[str], *, decrypts: bool) -> None:
    """See that a token can have keys of these kinds, and open SCEP requests if it `decrypts`.

    Raises `HsmUnfit`, `Unavailable`.
    """
    for kind in kinds:
        await asyncio.to_thread(hsm_keys.check_mechanisms, _configured(hsm, "of a new CA"), token, kind)
    if decrypts:
        new_ra = _configured(hsm, "of a new RA")
        await asyncio.to_thread(hsm_keys.check_mechanisms, new_ra, token, "rsa-2048", decrypts=True)


def _configured(hsm: Hsm | None, name: str) -> Hsm:
    if hsm is None:
        raise HsmUnfit(
            "hsm_not_configured",
            f"the key {name} is in a HSM, and this node has no PIN for one",
            "name the PIN's file as [hsm] pin_file in enrolld.toml, or ENROLLD_HSM_PIN_FILE",
        )
    require_library()
    return hsm


class Keyring:
    """Makes keys and opens them. `unlock_key` opens those that are sealed, `hsm` reaches those that are in one."""

    def __init__(self, store: Store, unlock_key: UnlockKey | None, hsm: Hsm | None) -> None:
        self._store = store
        self._hsm = hsm
        self._unlock_key = unlock_key
        self._unlock_key_is_proven = False

    @property
    def can_unlock(self) -> bool:
        """Whether sealed keys can be opened at all."""
        return self._unlock_key is not None

    async def new_key(self, kind: str, where: InToken | None = None) -> NewKey:
        """Make a key of one of `kinds.KINDS`, in a HSM or, sealed, for the store.

        Raises `SealingFailed` when the store's keys were sealed with another unlock key, `HsmUnfit` when the token
        can't make such a key, `Unavailable` without an unlock key.
        """
        if where is not None:
            reference, in_token = await asyncio.to_thread(
                hsm_keys.make_key, self._need_hsm(where.name), where.token, where.name, kind, decrypts=where.decrypts
            )
            made = NewKey(in_token, reference.to_bytes(), spki_sha256(in_token))
            if where.decrypts:
                try:
                    await self._ra_key_in_hsm(made.pkcs8, where.name, in_token)
                except (HsmUnfit, Unavailable):
                    await self.discard([made])
                    raise
            return made
        if self._unlock_key is None:
            raise Unavailable("no unlock key: keys can't be made")
        await self.prove_unlock_key()
        key: PrivateKey = await asyncio.to_thread(_MAKE[kind])
        public_key = key.public_key()
        return NewKey(public_key, self._unlock_key.seal(key), spki_sha256(public_key))

    async def discard(self, keys: Sequence[NewKey]) -> None:
        """Remove keys from the HSM whose record came to nothing; those that can't be removed are left, and told."""
        for key in keys:
            if KeyReference.is_one(key.pkcs8):
                reference = KeyReference.parse(key.pkcs8, "new")
                try:
                    await asyncio.to_thread(hsm_keys.destroy_key, self._need_hsm(reference.label), reference)
                except (HsmUnfit, Unavailable) as exc:
                    _LOG.warning("the key %s stays in the token %s unused: %s", reference.label, reference.token, exc)

    async def check_token(self, token: str, kinds: Sequence[str], *, decrypts: bool) -> None:
        """See `check_token`."""
        await check_token(self._hsm, token, kinds, decrypts=decrypts)

    async def token_of(self, name: str, purpose: str) -> str | None:
        """The label of the token that has the key `name`; None when it is sealed in the store, or not there."""
        row = await self._store.first(_KEY, name=name, purpose=purpose)
        if row is None or not KeyReference.is_one(row[0]):
            return None
        return KeyReference.parse(row[0], name).token

    async def signer(self, name: str, public_key: PublicKey) -> Signer:
        """The signer of a CA certificate with `public_key`. Raises `SealingFailed`, `Unavailable`."""
        return await self._signer_of(await self._kept(name, "ca"), name, public_key)

    async def signer_of_new(self, key: NewKey, name: str) -> Signer:
        """The signer of a key that is not in the store yet."""
        return await self._signer_of(key.pkcs8, name, key.public_key)

    async def server_key(self, name: str, public_key: PublicKey) -> PrivateKey:
        """The private key of one of enrolld's own TLS server certificates, never of a CA. Raises `SealingFailed`."""
        kept = await self._kept(name, "server")
        return self._open_fitting(kept, name, public_key)

    async def ra_key(self, name: str, public_key: PublicKey) -> RaKey:
        """The key of a SCEP RA, which is no CA's; proven, when in a HSM. Raises `SealingFailed`, `Unavailable`."""
        kept = await self._kept(name, "ra")
        if KeyReference.is_one(kept):
            return await self._ra_key_in_hsm(kept, name, public_key)
        key = self._open_fitting(kept, name, public_key)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise _not_rsa(name)
        return SoftwareRaKey(key)

    async def _signer_of(self, kept: bytes, name: str, public_key: PublicKey) -> Signer:
        if not KeyReference.is_one(kept):
            return software_signer(self._open_fitting(kept, name, public_key))
        if not isinstance(public_key, hsm_keys.HsmPublicKey):
            raise InternalError(f"the key {name} is of a kind that is not used in a HSM")
        reference = KeyReference.parse(kept, name)
        return HsmSigner(
            await asyncio.to_thread(hsm_keys.load_signing_key, self._need_hsm(name), reference, public_key, name)
        )

    async def _ra_key_in_hsm(self, kept: bytes, name: str, public_key: PublicKey) -> RaKey:
        if not isinstance(public_key, rsa.RSAPublicKey):
            raise _not_rsa(name)
        reference = KeyReference.parse(kept, name)
        return HsmRaKey(
            await asyncio.to_thread(hsm_keys.load_ra_key, self._need_hsm(name), reference, public_key, name)
        )

    async def _kept(self, name: str, purpose: str) -> bytes:
        """What the store keeps of a key."""
        row = await self._store.first(_KEY, name=name, purpose=purpose)
        if row is None:
            raise SealingFailed(f"the key {name} is not in the store")
        return bytes(row[0])

    def _need_hsm(self, name: str) -> Hsm:
        return _configured(self._hsm, name)

    def _open_fitting(self, pkcs8: bytes, name: str, public_key: PublicKey) -> PrivateKey:
        key = self._open(pkcs8, name)
        if key.public_key() != public_key:  # enforces case 75
            raise SealingFailed(f"the key {name} does not belong to its certificate")
        return key

    async def prove_unlock_key(self) -> None:
        """A key that is sealed with the wrong unlock key is lost: see that it opens one of the store's.

        One that opens is enough; another may be damaged, and that must not stop all the rest.
        """
        if self._unlock_key_is_proven:
            return
        failed: SealingFailed | None = None
        for name, pkcs8 in await self._store.fetch(_SOME_KEYS):
            try:
                self._open(pkcs8, name)
            except SealingFailed as exc:
                failed = failed or exc
            else:
                failed = None
                break
        if failed is not None:
            raise failed
        self._unlock_key_is_proven = True

    def _open(self, pkcs8: bytes, name: str) -> PrivateKey:
        if self._unlock_key is None:
            raise Unavailable(f"no unlock key: the key {name} can't be opened")
        return self._unlock_key.unseal(pkcs8, name)


def _not_rsa(name: str) -> InternalError:
    return InternalError(f"the key {name} is not RSA, and stock SCEP clients know nothing else")
