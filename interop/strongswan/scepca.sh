#!/bin/sh
# Fetch the realm's SCEP certificates, over plain HTTP, and keep them only if the root vouches for them. Needs SCEP
# (http://HOST:PORT/scep) and root.pem; makes ra.pem (the RA) and scep-ca.pem (the issuing CA).
set -eu

# --- recipe
pki --scepca --url "$SCEP" --caout fetched.pem --outform pem --force &&
openssl verify -CAfile root.pem fetched-1.pem &&
openssl verify -CAfile root.pem -untrusted fetched-1.pem -purpose smimeencrypt fetched-ra.pem &&
mv fetched-1.pem scep-ca.pem && mv fetched-ra.pem ra.pem
