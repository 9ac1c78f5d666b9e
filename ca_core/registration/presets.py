"""Presets: profiles to begin with. Each is a document like any other, to be changed as an operator likes."""

from dataclasses import dataclass

from ca_core.errors import OperatorError
from ca_core.registration.profile_document import ProfileDocument
from ca_core.rows import ProfileRow

__all__ = ["PRESETS", "Preset", "preset", "preset_rows", "profile_row"]

_RSA = ("rsa",)
_EC = ("p-256", "p-384", "p-521")


@dataclass(frozen=True, slots=True)
class Preset:
    """A profile to begin with; `about` says in a line what it is for."""

    name: str
    about: str
    document: ProfileDocument


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "ldevid",
            "IEEE 802.1AR LDevID: the serial number that the IDevID has proven, and the device's name",
            # "The DevID certificate subject field shall be non-null and should include the serialNumber attribute with
            # the device's unique serial number." -- IEEE 802.1AR 8.6
            ProfileDocument(
                subject={"serialNumber": "{device.serial_number}", "CN": "{device.name}"},
                validity="365d",
                jitter="30d",
                keys=(*_EC, "rsa"),
            ),
        ),
        Preset(
            "tls-client",
            "a TLS client: the device's name, and the names of its record",
            ProfileDocument(jitter="9d"),
        ),
        Preset(
            "tls-server",
            "a TLS server that renews by its certificate: the names of its record, which browsers read",
            ProfileDocument(extended_key_usages=("serverAuth", "clientAuth"), jitter="9d"),
        ),
        Preset(
            "network-gear",
            "routers and switches: IPsec (IKE) and 802.1X, under the RSA issuer that SCEP needs",
            ProfileDocument(
                issuer="rsa",
                validity="365d",
                jitter="30d",
                keys=_RSA,
                extended_key_usages=("clientAuth", "serverAuth", "ipsecIKE"),
            ),
        ),
        Preset(
            "mdm",
            "mobile devices that an MDM enrolls by SCEP: Wi-Fi, VPN and TLS client",
            ProfileDocument(issuer="rsa", validity="365d", jitter="30d", keys=_RSA),
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises `OperatorError`."""
    if name not in PRESETS:
        shown = ascii(name[:40])[1:-1]
        raise OperatorError("preset_unknown", f"there is no preset '{shown}'", f"there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_rows() -> list[ProfileRow]:
    """The profiles to begin with."""
    return [profile_row(each.name, each.document, None, each.about) for each in PRESETS.values()]


def profile_row(name: str, profile: ProfileDocument, realm: str | None, about: str | None) -> ProfileRow:
    """A profile as operators see it; of a realm, or a preset with what it is for."""
    return ProfileRow(
        id=name,
        profile=name,
        realm=realm,
        about=about,
        issuer=profile.issuer,
        validity=profile.validity,
        keys=list(profile.keys),
        subject=[f"{attribute.name}={template.text}" for attribute, template in profile.rules.subject],
        names=list(profile.names),
        extended_key_usages=list(profile.extended_key_usages),
    )
