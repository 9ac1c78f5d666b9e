#!/bin/sh
# Enroll with the device's one-time secret. Needs EST, NAME, SECRET, root.pem and ca.pem; makes device.key, device.pem.
set -eu

# --- recipe
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out device.key
openssl req -new -key device.key -subj "/CN=$NAME" -outform DER | openssl base64 -out device.csr
curl --silent --show-error --fail-with-body --cacert root.pem --user "$NAME:$SECRET" \
  --header 'Content-Type: application/pkcs10' --data-binary @device.csr \
  --output answer "$EST/simpleenroll" || cat answer
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out device.pem
openssl verify -CAfile root.pem -untrusted ca.pem device.pem
