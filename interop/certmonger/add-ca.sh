#!/bin/sh
# Tell certmonger of the CA, once the root vouches for what it says over plain HTTP. Needs SCEP (http://HOST:PORT/scep),
# root.pem and ca.pem, which stay where they are, since certmonger is given their full paths (by PWD); makes ra.pem (the
# RA), which stays too.
set -eu

# --- recipe
/usr/lib/certmonger/scep-submit -u "$SCEP" -C > fetched.pem && openssl x509 -in fetched.pem -out fetched-ra.pem &&
openssl verify -CAfile root.pem -untrusted ca.pem -purpose smimeencrypt fetched-ra.pem && mv fetched-ra.pem ra.pem &&
{ getcert remove-ca -c enrolld || true; } &&
getcert add-scep-ca -c enrolld -u "$SCEP" -r "$PWD/ra.pem" -N "$PWD/root.pem" -I "$PWD/ca.pem"
