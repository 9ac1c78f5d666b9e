#!/bin/sh
# Renew with a new key, shown by the old certificate. Needs SERVER, NAME, root.pem, est-1.pem, est-2.pem, device.key and
# device.pem; replaces the last two, unless it is refused.
set -eu

# --- recipe
(umask 077; [ -s new.key ] || pki --gen --type ecdsa --size 256 --outform pem > new.key) &&
pki --req --in new.key --dn "CN=$NAME" > new.req &&
pki --est --url "$SERVER" --cacert root.pem --cacert est-1.pem --cacert est-2.pem \
  --in new.req --cert device.pem --key device.key --outform pem > new.pem &&
pki --verify --in new.pem --cacert root.pem --cacert est-1.pem --cacert est-2.pem &&
mv new.key device.key && mv new.pem device.pem
