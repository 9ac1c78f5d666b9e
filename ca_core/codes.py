"""The stable codes of refusals, each with the remedy that an operator reads.

The set is closed: metrics, logs, attempts and audit events use these words, and nothing else.
"""

CODES: dict[str, str] = {
    # --- the bytes -----------------------------------------------------------------------------------------------
    "http_malformed": "The client sent a request that is not HTTP; look at its URL and its proxy.",
    "http_too_large": "The request line, a header or the body is larger than anything enrollment needs.",
    "http_timeout": "The client was too slow to send its request; look at the network between.",
    "body_too_large": "Send a PKCS#10 request of less than 64 KiB; 1 KiB is usual.",
    "body_empty": "Send the PKCS#10 request as the body of the POST.",
    "content_type_wrong": "Send 'Content-Type: application/pkcs10'.",
    "content_coding_unsupported": "Send the body without Content-Encoding; gzip is not spoken in EST.",
    "not_base64": "Send the DER of the PKCS#10 request in base64 (RFC 8951 section 3).",
    "not_pkcs10": "Send a PKCS#10 certificate request: 'openssl req -new -key KEY -outform DER | base64'.",
    "trailing_data": "Send the PKCS#10 request alone; bytes follow its end.",
    "csr_version": "Use PKCS#10 version 1 (the integer 0); the client's CSR generator is broken.",
    "csr_extension_malformed": "The extensionRequest attribute can't be read; look at the client's CSR configuration.",
    "csr_duplicate_extension": "The CSR asks for an extension twice; look at the client's CSR configuration.",
    "csr_name_malformed": "A name in the CSR holds characters that names can't hold, or is too long.",
    "csr_too_many_names": "The CSR asks for more names than a device can have.",
    "csr_attribute_malformed": "An attribute of the CSR can't be read; look at the client's CSR configuration.",
    # --- the key -------------------------------------------------------------------------------------------------
    "csr_signature_bad": "The CSR is not signed with its own key; make a new one with the key that belongs to it.",
    "csr_signature_weak": "The CSR is signed with MD5 or SHA-1; set the client's hash to SHA-256.",
    "key_too_small": "Use a key of RSA 2048 to 4096, or P-256, P-384, P-521.",
    "key_too_large": "Use an RSA key of at most 4096 bits.",
    "key_exponent": "Use an RSA key with the public exponent 65537.",
    "key_invalid": "The public key is not a valid key (a point off its curve, an even modulus); make a new one.",
    "key_type": "Use a key of RSA 2048 to 4096, or P-256, P-384, P-521.",
    "key_blocked": "This key is blocked because it was compromised; make a new key on the device.",
    "key_of_other_device": "This key already has a certificate for another device; make a new key on the device.",
    # --- linking to TLS ------------------------------------------------------------------------------------------
    "channel_binding_mismatch": "The CSR's challengePassword is not this TLS session's binding (RFC 7030 3.5); a proxy "
    "between breaks it, and so does a password put there by hand: leave the attribute out.",
    "channel_binding_missing": "This realm wants the CSR linked to the TLS session (RFC 7030 3.5); use a client that "
    "can, or set channel_binding = 'optional' in the realm.",
    # --- who asks ------------------------------------------------------------------------------------------------
    "credentials_missing": "Send the device's secret as the Basic password, or present a client certificate.",
    "credentials_malformed": "The Authorization header can't be read; send 'Basic' with base64 of user:secret.",
    "secret_unknown": "No such secret in this realm; make one with 'enrolld device secret NAME'.",
    "secret_wrong": "The secret's first half is known, its second is not; copy it again, or make a new one.",
    "secret_spent": "The secret was used with another key or names, or its retry window is over; make a new one with "
    "'enrolld device secret NAME'.",
    "secret_expired": "The secret has expired; make a new one with 'enrolld device secret NAME'.",
    "secret_void": "The secret was replaced by a newer one; use that.",
    "secret_other_user": "The user name is not the device that this secret was made for.",
    "secret_not_admitted": "This realm does not admit by secret; see its [admission].",
    "certificate_unknown": "The client certificate is neither one of this realm's nor from a manufacturer it trusts; "
    "add the manufacturer with 'enrolld trust add --realm R FILE'.",
    "certificate_expired": "The client certificate has expired; give the device a secret and enroll it again.",
    "certificate_not_yet_valid": "The client certificate is not valid yet; look at the clocks.",
    "certificate_revoked": "The client certificate is revoked; if the device is sound, give it a secret.",
    "certificate_not_for_clients": "The client certificate is made for another purpose than to prove who a client is.",
    "certificate_malformed": "The client certificate can't be read.",
    "chain_incomplete": "Have the device send its manufacturer's intermediate CA certificates with its own, or trust "
    "the intermediate itself with 'enrolld trust add'.",
    "chain_invalid": "The device's certificate chain breaks a rule (names, constraints, a signature, a weak key).",
    "idevid_not_admitted": "This realm does not admit by IDevID; see its [admission].",
    "idevid_without_serial": "The IDevID carries no serialNumber; enroll the device with a secret.",
    "device_unknown": "No device with this manufacturer and serial number is registered: "
    "'enrolld device add NAME --serial-number S --manufacturer M'.",
    "device_suspended": "The device is suspended: 'enrolld device resume NAME' lets it in again.",
    "device_retired": "The device is retired; add it anew under another name if it is back.",
    # --- what it asks for ----------------------------------------------------------------------------------------
    "realm_unknown": "No such realm or profile; the label in the URL is REALM or REALM.PROFILE.",
    "realm_not_here": "This host serves one realm only; use that realm's label, or the shared host.",
    "operation_unknown": "No such operation; cacerts, csrattrs, simpleenroll and simplereenroll are served.",
    "operation_not_served": "This optional operation is not served.",
    "method_not_allowed": "Use GET for cacerts and csrattrs, POST for simpleenroll and simplereenroll.",
    "reenroll_needs_own_certificate": "simplereenroll renews a certificate of this realm; use simpleenroll first.",
    "subject_mismatch": "The CSR's subject must be the device's own name (CN), or empty.",
    "renewal_subject_mismatch": "A renewal must repeat the subject of the certificate it renews (RFC 7030 4.2.2).",
    "renewal_san_mismatch": "A renewal must repeat the subjectAltName of the certificate it renews, or leave it out.",
    "san_not_allowed": "The CSR asks for a name that the device's record doesn't have: "
    "'enrolld device add NAME --san ...'.",
    "ca_requested": "The CSR asks for a CA certificate; devices never get one.",
    "extension_not_allowed": "The CSR asks for a purpose that the profile does not give.",
    "profile_not_allowed": "The device is bound to another profile than the label names.",
    "rekey_required": "The profile wants a new key with each renewal.",
    "retry_other_names": "The same key asked again with other names; make a new secret for the new names.",
    "changed_meanwhile": "The realm, the device or its credential changed while the request was served; ask again.",
}
