#!/bin/sh
# Enroll by SCEP with the device's one-time secret. Needs SCEP, NAME, SECRET, root.pem, ra.pem and scep-ca.pem; makes
# device.key and device.pem. A refusal changes neither of them.
set -eu

# --- recipe
(umask 077; [ -s new.key ] || pki --gen --type rsa --size 2048 --outform pem > new.key &&
  printf '%s %s' --password "$SECRET" > login) &&
pki --scep --url "$SCEP" --cacert-enc ra.pem --cacert-sig scep-ca.pem --cacert root.pem \
  --in new.key --dn "CN=$NAME" --options login --outform pem > new.pem || { rm -f login; false; } &&
rm -f login && pki --verify --in new.pem --cacert root.pem --cacert scep-ca.pem &&
mv new.key device.key && mv new.pem device.pem
