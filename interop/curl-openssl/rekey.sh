#!/bin/sh
# Renew with a new key. Needs EST, NAME, root.pem, ca.pem, device.key and device.pem; replaces the last two.
# A refusal changes neither of them.
set -eu

# --- recipe
[ -s new.key ] || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.key
openssl req -new -key new.key -subj "/CN=$NAME" -outform DER | openssl base64 -out new.csr
curl --silent --show-error --fail-with-body --cacert root.pem --cert device.pem --key device.key \
  --header 'Content-Type: application/pkcs10' --data-binary @new.csr \
  "$EST/simplereenroll" > answer || { cat answer; false; } &&
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out new.pem &&
openssl verify -CAfile root.pem -untrusted ca.pem new.pem && mv new.key device.key && mv new.pem device.pem
