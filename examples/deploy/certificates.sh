#!/bin/sh
# A root certificate of your own and one for the SuperLink that it vouches for, valid for a year.
#   certificates.sh DIR DNS:fl.example.org,IP:192.0.2.1
# ca.key and server.key stay with whoever runs the SuperLink; every node gets ca.crt.
set -eu
dir=$1 names=$2
umask 077
mkdir -p "$dir"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 365 -subj "/CN=fedpeft root" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
    -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=fedpeft SuperLink" \
    -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" > "$dir/server.ext"
openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 365 \
    -extfile "$dir/server.ext" -out "$dir/server.crt" 2>/dev/null
rm "$dir/server.csr" "$dir/server.ext"
