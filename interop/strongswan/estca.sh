#!/bin/sh
# Fetch the realm's CA certificates. Needs SERVER (https://HOST:PORT) and root.pem; makes ca.pem (the root as served),
# ca-1.pem, ca-2.pem (its issuing CAs).
set -eu

# --- recipe
pki --estca --url "$SERVER" --cacert root.pem --caout ca.pem --outform pem --force
