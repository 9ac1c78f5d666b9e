#!/bin/sh
# Enroll with the device's one-time secret. Needs SERVER, NAME, SECRET, root.pem, est-1.pem and est-2.pem; makes
# device.key and device.pem. A refusal changes neither of them.
set -eu

# --- recipe
(umask 077; [ -s new.key ] || pki --gen --type ecdsa --size 256 --outform pem > new.key &&
  printf '%s %s:%s' --userpass "$NAME" "$SECRET" > login) &&
pki --req --in new.key --dn "CN=$NAME" > new.req &&
pki --est --url "$SERVER" --cacert root.pem --cacert est-1.pem --cacert est-2.pem \
  --in new.req --options login --outform pem > new.pem || { rm -f login; false; } &&
rm -f login && pki --verify --in new.pem --cacert root.pem --cacert est-1.pem --cacert est-2.pem &&
mv new.key device.key && mv new.pem device.pem
