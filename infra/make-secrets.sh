#!/bin/sh
# Makes what infra/compose.yaml, rayjob.yaml and slurm.sbatch keep secret: infra/make-secrets.sh FOLDER NAME...
# FOLDER gets a certificate authority, a certificate of the Redis server for the NAMEs and addresses by which it is reached, the ACL
# file with a new password, Ray's token, and redis.env, which gives raylens the server's URL under the first NAME.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n 2,4p "$0" >&2; exit 2; }
folder=$1
shift
[ ! -e "$folder" ] || { echo "$folder: exists; remove it to make new secrets" >&2; exit 1; }
mkdir -p "$folder"
cd "$folder"

names=
for name in "$@"; do
    case $name in
        *:*) names="$names,IP:$name" ;; # IPv6
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done
{
    openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=raylens CA" -keyout ca.key -out ca.crt
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout redis.key -out redis.csr
    printf 'subjectAltName=%s\n' "${names#,}" > names
    openssl x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile names -out redis.crt
} > openssl.log 2>&1 || { cat openssl.log >&2; exit 1; }
rm -f names redis.csr ca.srl openssl.log

openssl rand -hex 24 > password
openssl rand -hex 32 > ray.token
sed "s/CHANGE-ME/$(cat password)/" "$here/redis.acl" > raylens.acl
case $1 in *:*) host="[$1]" ;; *) host=$1 ;; esac
url="rediss://raylens:$(cat password)@$host:6379?ssl_ca_certs=${CA:-/run/secrets/ca.crt}"
printf 'RAYLENS_RUN_REDIS=%s\nRAYLENS_WRITER_REDIS=%s\nRAYLENS_STATUS_REDIS=%s\n' "$url" "$url" "$url" > redis.env
