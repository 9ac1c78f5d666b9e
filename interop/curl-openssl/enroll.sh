#!/bin/sh
# Enroll with the device's one-time secret. Needs EST, NAME, SECRET, root.pem and ca.pem; makes device.key, device.pem.
# A refusal changes neither of them.
set -eu

# --- recipe
[ -s new.key ] || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.key
openssl req -new -key new.key -subj "/CN=$NAME" -outform DER | openssl base64 -out new.csr
printf 'user = "%s:%s"\n' "$NAME" "$SECRET" |
curl --silent --show-error --fail-with-body --config - --cacert root.pem \
  --header 'Content-Type: application/pkcs10' --data-binary @new.csr \
  "$EST/simpleenroll" > answer || { cat answer; false; } &&
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out new.pem &&
openssl verify -CAfile root.pem -untrusted ca.pem new.pem && mv new.key device.key && mv new.pem device.pem
