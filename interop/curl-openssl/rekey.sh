#!/bin/sh
# Renew with a new key. Needs EST, NAME, root.pem, ca.pem, device.key and device.pem; replaces the last two.
set -eu

# --- recipe
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.key
openssl req -new -key new.key -subj "/CN=$NAME" -outform DER | openssl base64 -out device.csr
curl --silent --show-error --fail-with-body --cacert root.pem --cert device.pem --key device.key \
  --header 'Content-Type: application/pkcs10' --data-binary @device.csr \
  --output answer "$EST/simplereenroll" || cat answer
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out renewed.pem
openssl verify -CAfile root.pem -untrusted ca.pem renewed.pem && mv new.key device.key && mv renewed.pem device.pem
