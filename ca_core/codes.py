"""The stable codes of refusals, each with the remedy that an operator reads.

The set is closed: metrics, logs, attempts and audit events use these words, and nothing else.
"""

CODES: dict[str, str] = {
    # --- the bytes -----------------------------------------------------------------------------------------------
    "http_malformed": "The client sent a request that is not HTTP; look at its URL and its proxy.",
    "http_no_host": "The client speaks HTTP/1.1 without a Host header; give it another HTTP client or HTTP/1.0.",
    "http_target_too_long": "The request line is longer than 32 KiB; SCEP clients should POST.",
    "http_field_too_long": "A header is longer than anything enrollment needs; look at the client and its proxy.",
    "http_too_many_fields": "The client sends more headers than anything enrollment needs.",
    "http_head_too_large": "The client's headers are larger than anything enrollment needs.",
    "http_head_timeout": "The client was too slow to send its request; look at the network between.",
    "http_body_too_large": "The body is larger than anything this address takes.",
    "http_body_timeout": "The client was too slow to send its body; look at the network between.",
    "http_body_truncated": "The client announced a longer body than it sent; look at the client and its proxy.",
    "http_version_unsupported": "The client speaks another version of HTTP; HTTP/1.0 and HTTP/1.1 are served.",
    "http_got_tls": "The client speaks TLS to the plain HTTP port; use the https port in its URL.",
    "http_not_found": "There is nothing at this address; 'enrolld status' shows the URLs.",
    "http_method_not_allowed": "This address does not take this method.",
    "http_expectation_failed": "The client sends an Expect header that nobody knows.",
    # --- the TLS connection ----------------------------------------------------------------------------------------
    "tls_not_tls": "The client does not speak TLS; EST needs https in its URL.",
    "tls_closed_early": "The client hung up in the middle of the TLS handshake; look at its log.",
    "tls_handshake_timeout": "The client was too slow in the TLS handshake; look at the network between.",
    "tls_handshake_too_large": "The client's TLS handshake is larger than any honest one.",
    "tls_handshake_failed": "The TLS handshake failed; the client's log says more.",
    "tls_version_unsupported": "The client speaks neither TLS 1.2 nor TLS 1.3; it needs an update.",
    "tls_no_shared_cipher": "The client offers no cipher that is safe; it needs ECDHE with AES-GCM or ChaCha20.",
    "tls_no_shared_alpn": "The client offers no HTTP/1.1 (ALPN); curl needs --http1.1.",
    "tls_unknown_name": "No certificate serves the name that the client asked for.",
    "tls_server_not_trusted": "The client does not trust this server: give it the realm's root ('enrolld ca export'), "
    "and let it use a name that the server certificate has ('--name').",
    "tls_peer_alert": "The client ended the TLS handshake with an alert; its log says why.",
    "tls_bad_certificate": "The client's certificate can't be read, or it does not hold its key.",
    "tls_chain_too_long": "The client sends more than 10 certificates or 64 KiB of them.",
    "tls_key_too_large": "The client's RSA key is larger than 8192 bits.",
    "tls_protocol_error": "The client broke the rules of TLS; something between may have changed its bytes.",
    "write_stalled": "The client stopped reading its answer; look at the network between.",
    "proxy_unknown": "Somebody who is not in [proxy] from connected to a listener behind a balancer; name the balancer "
    "there, and let clients use the other listeners.",
    "proxy_header_bad": "The balancer does not speak PROXY protocol version 2; with haproxy: 'send-proxy-v2'.",
    "proxy_header_timeout": "The balancer sent no PROXY header; with haproxy: 'send-proxy-v2'.",
    "connections_in_all": "There were too many connections; look at who holds them, or raise 'connections' under "
    "[limits].",
    "connections_of_source": "This address held too many connections; raise 'connections_per_source' under [limits] if "
    "a fleet is behind it, or list it as trusted.",
    "bodies_in_all": "Bodies that were not sent to their end held too much memory; look at who begins and does not end "
    "them.",
    "handshakes_in_all": "Too many TLS handshakes were under way at a time; look at who begins them, or raise "
    "'handshakes' under [limits].",
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
    # --- SCEP messages -------------------------------------------------------------------------------------------
    "scep_too_large": "The message is larger than any honest one; look at the client and its proxy.",
    "scep_not_cms": "Send a CMS SignedData (RFC 8894 3.2), as DER or BER, with nothing after its end.",
    "scep_signer_count": "Sign the message once; no signer and two signers are refused alike.",
    "scep_no_transaction": "The message has no signed transactionID of 1 to 255 printable characters.",
    "scep_no_signer": "Put the certificate of the key that signs (self-signed will do) into the message.",
    "scep_attribute_malformed": "A signed attribute can't be read, or stands there twice.",
    "scep_message_type": "Send RenewalReq (17), PKCSReq (19), CertPoll (20), GetCert (21) or GetCRL (22).",
    "scep_nonce": "Send a senderNonce of 16 bytes; more than 64 are refused.",
    "scep_content_type": "The content, and the signed attribute contentType, must be of type data.",
    "scep_digest_mismatch": "The signed messageDigest is not that of the content; something changed it on its way.",
    "scep_signature_bad": "The message is not signed with the key of the certificate that it names.",
    "scep_signer_ambiguous": "Two certificates of one key and one name are in the message; send one.",
    "scep_digest_unsupported": "Set the client's hash to SHA-256; MD5 is never accepted.",
    "scep_signature_unsupported": "Let the client sign with RSA or ECDSA and SHA-256.",
    "scep_signer_key": "The signer's key must be RSA of 1024 to 8192 bits, or P-256, P-384, P-521.",
    "scep_not_enveloped": "Encrypt the request (EnvelopedData); in the clear it shows its challenge to everyone.",
    "scep_envelope_not_for_us": "The message is encrypted to another certificate; fetch GetCACert again.",
    "scep_cipher_unsupported": "Set the client's encryption to AES; single DES needs the realm's 'scep.read_des'.",
    "scep_key_transport_unsupported": "Encrypt the key with RSA PKCS#1 v1.5, or OAEP with SHA-1 or SHA-256.",
    "scep_envelope_bad": "The envelope can't be decrypted; fetch GetCACert again and look at the client.",
    "scep_reply_needs_rsa": "The answer is encrypted to the signer's key, which must be RSA; EST takes EC keys.",
    "scep_csr_key": "SCEP knows no Ed25519 and no ML-DSA; let the device make an RSA key, or enroll by EST.",
    "scep_message_missing": "Send the pkiMessage in the GET's message=, or as the body of the POST.",
    "scep_not_base64": "Send the pkiMessage of a GET in base64, percent-encoded.",
    "scep_operation_unknown": "Send operation=GetCACaps, GetCACert or PKIOperation.",
    "scep_no_next_ca": "There is no next CA certificate; one is there only while a CA is rolled over.",
    "scep_not_served": "GetCert and GetCRL are not served: CRLs and CA certificates are fetched over plain HTTP at the "
    "URLs that each certificate names.",
    "scep_sha1_not_allowed": "Set the client's hash to SHA-256, or 'allow_sha1 = true' under [scep] of the realm.",
    "scep_3des_not_allowed": "Set the client's encryption to AES, or 'allow_3des = true' under [scep] of the realm.",
    "scep_signer_not_csr_key": "Without a certificate of this realm, a request is signed with the key that it asks a "
    "certificate for.",
    "transaction_unknown": "Nothing was issued in this transaction to the key that asks; send a new request.",
    "transaction_of_other_key": "The client used one transactionID for two keys; each request needs its own.",
    "transaction_of_other_request": "The client used one transactionID for two requests; each needs its own.",
    "transaction_over": "The request is an old one: what it led to was revoked, replaced or has expired. If the device "
    "really sends it, give it a secret.",
    "renewal_needs_certificate": "RenewalReq is signed with a valid certificate; the client should send PKCSReq.",
    "profile_not_for_protocol": "SCEP gives certificates under the rsa issuer only; give the device such a profile, or "
    "let it enroll by EST.",
    "protocol_not_served": "The realm's [scep] is not enabled, or its profile is missing.",
    # --- the key -------------------------------------------------------------------------------------------------
    "csr_signature_bad": "The CSR is not signed with its own key; make a new one with the key that belongs to it.",
    "csr_signature_weak": "The CSR is signed with MD5 or SHA-1; set the client's hash to SHA-256.",
    "key_too_small": "Use a key of RSA 2048 to 4096, or P-256, P-384, P-521.",
    "key_too_large": "Use an RSA key of at most 4096 bits.",
    "key_exponent": "Use an RSA key with the public exponent 65537.",
    "key_invalid": "The public key is not a valid key (a point off its curve, an even modulus); make a new one.",
    "key_type": "Use a key of RSA 2048 to 4096, or P-256, P-384, P-521.",
    "key_not_allowed": "The device's profile allows other kinds of keys; see 'keys' in 'enrolld profile show'.",
    "key_roca": "The device's chip or library (Infineon's RSALib) makes keys that can be factored; update its "
    "firmware, or let it use P-256.",
    "key_close_primes": "The device's key generator is broken, and what it makes can be factored; update it, or let it "
    "use P-256.",
    "key_small_factor": "The key was damaged, or made by a broken generator; make a new one, and if that is refused "
    "too, update the device.",
    "key_debian": "The key comes from a Debian OpenSSL of 2006 to 2008, and everybody has it; update the device and "
    "make a new one.",
    "key_blocked": "This key is blocked because it was compromised; make a new key on the device.",
    "key_of_other_device": "This key already has a certificate for another device; make a new key on the device.",
    # --- linking to TLS ------------------------------------------------------------------------------------------
    "channel_binding_mismatch": "The CSR's challengePassword is not this TLS session's binding (RFC 7030 3.5); a proxy "
    "between breaks it, and so does a password put there by hand: leave the attribute out.",
    "channel_binding_missing": "This realm wants the CSR linked to the TLS session (RFC 7030 3.5); use a client that "
    "can, or set channel_binding = 'optional' in the realm.",
    # --- who asks ------------------------------------------------------------------------------------------------
    "credentials_missing": "Send the device's secret (EST: the Basic password; SCEP: the challengePassword), or "
    "present a certificate.",
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
    "newer_certificate_revoked": "A newer certificate of the device was revoked, so older ones renew nothing; if "
    "the device is sound, give it a secret.",
    "certificate_superseded": "The device was replaced since this certificate was issued; give it a secret if it is "
    "the one that took the place, else look where the old one is used.",
    "certificate_not_for_clients": "The client certificate is made for another purpose than to prove who a client is.",
    "certificate_malformed": "The client certificate can't be read.",
    "chain_incomplete": "Have the device send its manufacturer's intermediate CA certificates with its own, or trust "
    "the intermediate itself with 'enrolld trust add'.",
    "chain_invalid": "The device's certificate chain breaks a rule (names, constraints, a signature, a weak key).",
    "device_not_expected": "Whoever asks proves nothing, and the device of that name is suspended or retired, or was "
    "registered with a secret or a factory identity, which it must show; 'enrolld device show NAME' tells.",
    "csr_holds_secret": "The client puts its secret into a name of the CSR, where others read it; look at its "
    "configuration, and give it a new secret.",
    "challenge_changed": "The realm has another challenge since the request came; give the device the new one.",
    "proof_missing": "The realm takes more than was proven ([admission] ways); give the client all of one way.",
    "proofs_disagree": "The secret and the factory certificate belong to two devices; see both with 'enrolld device "
    "show'.",
    "subject_names_no_device": "The CSR's CN must be the device's name: up to 64 letters, digits, '.', '_', ':', '-'.",
    "device_enrolled": "A challenge that all devices share gives a device its first certificate only; renew with the "
    "certificate, or use 'enrolld device secret NAME'.",
    "device_unnamed": "The IDevID's serial number can't be a device's name; register it with 'enrolld device add NAME "
    "--serial-number S'.",
    "device_name_taken": "A device of that name or serial number is registered; give it this serial number and "
    "manufacturer, or register the new one under another name.",
    "device_paused": "The device repeats what it is refused for; 'enrolld device why' tells. It is heard again by "
    "itself.",
    "ceiling_reached": "The realm gave as many first certificates today as [admission] ceiling allows; raise it if "
    "that is meant.",
    "requests_too_many": "Too many requests wait; decide some ('enrolld request list --state pending'), or raise "
    "[admission] pending_most or pending_per_source.",
    "request_outdated": "What would be issued is not what was asked for then. When the device asks again, that is a "
    "new request: decide that one.",
    "request_rejected": "An operator rejected the request; the device must ask with another key.",
    "idevid_not_admitted": "This realm does not admit by IDevID; see its [admission].",
    "idevid_without_serial": "The IDevID carries no serialNumber; enroll the device with a secret.",
    "device_unknown": "No device with this manufacturer and serial number is registered: "
    "'enrolld device add NAME --serial-number S --manufacturer M'.",
    "device_suspended": "The device is suspended: 'enrolld device resume NAME' lets it in again.",
    "device_retired": "The device is retired; add it anew under another name if it is back.",
    # --- the realm's webhook -------------------------------------------------------------------------------------
    "webhook_refused": "The realm's webhook refused; its reason is told with this.",
    "webhook_widens": "The realm's webhook allowed more than it was offered; its 'names' may only be fewer, its "
    "'validity' only shorter.",
    "webhook_timeout": "The realm's webhook gave no answer in time; look at it, and at the network between.",
    "webhook_unreachable": "The realm's webhook, or a name server for its name, can't be reached or hung up.",
    "webhook_address": "The name of the realm's webhook has an address that it must not have. If it is the right one, "
    "name its network in the webhook's 'networks'; if not, look at who answers for your DNS.",
    "webhook_tls": "The TLS certificate of the realm's webhook does not hold for its name; renew it, or put its CA "
    "into the webhook's 'ca_pem'.",
    "webhook_status": "The realm's webhook must answer with status 200, and say no in its body; look at its log.",
    "webhook_redirect": "The realm's webhook redirects, which is not followed; put the last address into its 'url'.",
    "webhook_malformed": "The realm's webhook must answer with application/json, 'allow' true or false and perhaps "
    "'reason', 'names', 'validity', and nothing else.",
    "webhook_too_large": "The realm's webhook answered with more than 16 KiB; a verdict needs less than one.",
    "webhook_unsigned": "The realm's webhook did not sign its answer, or with another key; look at both keys, or at "
    "who is between.",
    # --- too much -----------------------------------------------------------------------------------------------
    "rate_device": "The device got too many certificates in an hour; look at its client, or raise "
    "'certificates_per_device' under [limits].",
    "rate_credential": "One secret or certificate got too many certificates in an hour; look at the client, or raise "
    "'certificates_per_credential' under [limits].",
    "rate_source": "This address sends too many requests that prove nothing; look at what runs there, raise "
    "'refusals_per_source' under [limits], or list it as trusted.",
    "overloaded": "More requests came than this node serves; they were told to come again. Add workers or a node.",
    # --- what it asks for ----------------------------------------------------------------------------------------
    "realm_retired": "The realm is retired; 'enrolld realm resume REALM' lets it serve again.",
    "realm_unknown": "No such realm or profile; the label in the URL is REALM or REALM.PROFILE.",
    "realm_not_here": "This host serves one realm only; use that realm's label, or the shared host.",
    "operation_unknown": "No such operation; cacerts, csrattrs, simpleenroll and simplereenroll are served.",
    "operation_not_served": "This optional operation is not served.",
    "method_not_allowed": "Use GET for cacerts and csrattrs, POST for simpleenroll and simplereenroll.",
    "reenroll_needs_own_certificate": "simplereenroll renews a certificate of this realm; use simpleenroll first.",
    "subject_mismatch": "The CSR's subject must be the device's own name (CN), or empty.",
    "renewal_subject_mismatch": "A renewal must repeat the subject of the certificate it renews (RFC 7030 4.2.2).",
    "renewal_san_mismatch": "A renewal must repeat the subjectAltName of the certificate it renews, or leave it out.",
    "ca_requested": "The CSR asks for a CA certificate; devices never get one.",
    "extension_not_allowed": "The CSR asks for a purpose that the profile does not give.",
    "names_not_allowed": "The CSR asks for a name, attribute or account (SID) that the profile does not give; with "
    "others = 'drop' the profile leaves such out instead.",
    "profile_value_missing": "The profile names a value that the device's record or factory identity lacks: give it to "
    "the device ('enrolld device set'), or put '?' behind its name in the profile, which then leaves the field out.",
    "profile_value_invalid": "What the profile makes of the device's values is too long for the field, or no such "
    "name; 'enrolld explain CSR' shows it.",
    "csr_value_missing": "The profile takes this name from the CSR, and the CSR lacks it: set it in the client.",
    "csr_value_not_allowed": "The CSR's name does not match what the profile allows; see 'enrolld profile show'.",
    "name_of_other_device": "A name that the request or a template makes is another device's: its own name, one of its "
    "record, or one of its certificate; give the client its own, or put the name into its device's record.",
    "name_of_ca": "The certificate's subject would be that of one of the realm's CAs; let the client ask for another, "
    "or the profile make another ('enrolld profile show').",
    "name_of_server": "A name of this server is given to no device on its own word.",
    "profile_not_allowed": "The label names another profile than the device has; without one of its own it has the "
    "realm's default for EST. 'enrolld device set NAME --profile P' gives a device a profile.",
    "rekey_required": "The profile wants a new key with each renewal.",
    "retry_other_names": "The same key asked again with other names; make a new secret for the new names.",
    "internal_error": "enrolld itself failed; the log has the reason under this request id, 'enrolld check' may too.",
    "changed_meanwhile": "The realm, the device or its credential changed while the request was served; ask again.",
}
