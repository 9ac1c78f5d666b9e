#!/bin/sh
# Enroll with the device's one-time secret. Needs SERVER, NAME, SECRET, root.pem, ca-1.pem and ca-2.pem; makes
# device.key and device.pem.
set -eu

# --- recipe
pki --gen --type ecdsa --size 256 --outform pem > device.key
pki --req --in device.key --dn "CN=$NAME" > device.req
pki --est --url "$SERVER" --cacert root.pem --cacert ca-1.pem --cacert ca-2.pem \
  --in device.req --userpass "$NAME:$SECRET" --outform pem > device.pem
pki --verify --in device.pem --cacert root.pem --cacert ca-1.pem --cacert ca-2.pem
