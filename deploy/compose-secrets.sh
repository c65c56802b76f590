#!/usr/bin/env bash
# Makes the secrets of compose.yaml, each one its own: `bash deploy/compose-secrets.sh [folder]`, before the first start.
# What is there already stays, so running it again after an upgrade makes only what is new.
#
# The folder is for its owner alone. The files in it are readable, because compose mounts them as they are and each image
# has a user of its own: nobody else of the host gets through the folder.
set -euo pipefail
umask 077
folder=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

keep() { # a secret under a name: from the standard input, whole or not there
    cat >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
    echo "made $folder/$1"
}
password() { openssl rand -hex 24 | tr -d '\n'; }
hash_of() { # as RabbitMQ keeps a password: salt and SHA-256 of salt and password
    local salt
    salt=$(openssl rand -hex 4)
    local bytes="\\x${salt:0:2}\\x${salt:2:2}\\x${salt:4:2}\\x${salt:6:2}"
    { printf '%b' "$bytes"; printf '%b%s' "$bytes" "$1" | openssl dgst -sha256 -binary; } | openssl base64 -A
}

[ -e postgres_superuser ] || password | keep postgres_superuser
for login in migrator worker api; do # the password for Postgres, and the address for the program
    [ -e "postgres_$login" ] || password | keep "postgres_$login"
    role=$login
    [ "$login" != migrator ] || role=training_migrator
    [ -e "${login}_database_url" ] ||
        printf 'postgresql://%s:%s@postgres:5432/training' "$role" "$(cat "postgres_$login")" | keep "${login}_database_url"
done
[ -e postgres_grafana_reader ] || password | keep postgres_grafana_reader
[ -e grafana_admin ] || password | keep grafana_admin
[ -e api_encryption_keys ] || openssl rand -base64 32 | tr -d '\n' | keep api_encryption_keys

if [ ! -e rabbitmq_definitions.json ]; then
    users=
    rights=
    for user in admin worker operator; do
        word=$(password)
        tags=
        [ "$user" != admin ] || tags='"administrator"'
        users+="${users:+,}{\"name\":\"$user\",\"password_hash\":\"$(hash_of "$word")\",\"hashing_algorithm\":\"rabbit_password_hashing_sha256\",\"tags\":[$tags]}"
        rights+="${rights:+,}{\"user\":\"$user\",\"vhost\":\"/\",\"configure\":\".*\",\"write\":\".*\",\"read\":\".*\"}"
        case $user in
            admin) printf %s "$word" | keep rabbitmq_admin ;; # for its page; the broker has the hash only
            *) printf 'amqp://%s:%s@rabbitmq:5672/' "$user" "$word" | keep "${user}_amqp_url" ;;
        esac
    done
    printf '{"vhosts":[{"name":"/"}],"users":[%s],"permissions":[%s]}' "$users" "$rights" | keep rabbitmq_definitions.json
fi
