#!/bin/sh
# Renew with the same key, shown by the old certificate. Needs SCEP (https://HOST:PORT/scep), NAME, root.pem, ca.pem,
# device.key and device.pem; replaces device.pem, unless it is refused.
set -eu

# --- recipe
rm -f csr.pem && cp device.pem new.pem &&
SSL_CERT_FILE=root.pem SSL_CERT_DIR=/none scepclient -server-url "$SCEP" -private-key device.key -certificate new.pem \
  -cn "$NAME" &&
openssl verify -CAfile root.pem -untrusted ca.pem new.pem && mv new.pem device.pem
