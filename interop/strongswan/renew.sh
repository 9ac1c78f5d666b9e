#!/bin/sh
# Renew with a new key, shown by the old certificate. Needs SERVER, NAME, root.pem, ca-1.pem, ca-2.pem, device.key and
# device.pem; replaces the last two.
set -eu

# --- recipe
pki --gen --type ecdsa --size 256 --outform pem > new.key
pki --req --in new.key --dn "CN=$NAME" > new.req
pki --est --url "$SERVER" --cacert root.pem --cacert ca-1.pem --cacert ca-2.pem \
  --in new.req --cert device.pem --key device.key --outform pem > new.pem
mv new.key device.key && mv new.pem device.pem
