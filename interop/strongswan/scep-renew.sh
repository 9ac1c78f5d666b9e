#!/bin/sh
# Renew by SCEP with a new key, shown by the old certificate. Needs SCEP, NAME, root.pem, ra.pem, scep-ca.pem,
# device.key and device.pem; replaces the last two, unless it is refused.
set -eu

# --- recipe
(umask 077; [ -s new.key ] || pki --gen --type rsa --size 2048 --outform pem > new.key) &&
pki --scep --url "$SCEP" --cacert-enc ra.pem --cacert-sig scep-ca.pem --cacert root.pem \
  --in new.key --dn "CN=$NAME" --cert device.pem --key device.key --outform pem > new.pem &&
pki --verify --in new.pem --cacert root.pem --cacert scep-ca.pem &&
mv new.key device.key && mv new.pem device.pem
