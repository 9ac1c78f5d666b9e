#!/bin/sh
# Fetch the realm's CA certificates. Needs SERVER (https://HOST:PORT) and root.pem; makes est.pem (the root as served),
# est-1.pem, est-2.pem (its issuing CAs).
set -eu

# --- recipe
pki --estca --url "$SERVER" --cacert root.pem --caout est.pem --outform pem --force
