# Everything that README.md and CI do. Each target does its own set-up on a fresh Debian or Ubuntu machine;
# only a Rust toolchain is assumed.

SHELL := /bin/bash
.DEFAULT_GOAL := help

## demo: a cluster of three real PostgreSQL servers behind one endpoint, until Ctrl-C
.PHONY: demo
demo: setup
	cargo build --release --locked
	exec target/release/bellwether demo $(DEMO)

## test: unit tests, simulation and integration tests against real servers
.PHONY: test
test: setup setup-second-major setup-tools
	cargo test --locked --lib --bins --test house
	cargo test --locked --test chaos
	cargo test --locked --test integration -- --test-threads=1

## check: format, lints, documentation
.PHONY: check
check: setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items

## sim: the simulated world, many seeds (SEEDS=20000)
.PHONY: sim
sim: setup
	BELLWETHER_SIM_SEEDS=$(or $(SEEDS),20000) cargo test --locked --release --lib sim:: -- --nocapture --include-ignored

## chaos: three instances, servers and etcd on three hosts (network namespaces: as root), a hundred faults under a load whose histories are checked (FAULTS=20 SEED=7; LAYOUT=one: one instance)
.PHONY: chaos
chaos: setup setup-chaos
	FAULTS=$(FAULTS) SEED=$(SEED) LAYOUT=$(LAYOUT) cargo test --locked --test chaos -- --test-threads=1 --nocapture --include-ignored

## soak: the long versions: generated conversations (SEEDS=5000) with PostgreSQL 14 to 18, clients that leave things behind, fuzzed input, pitfalls of WAL shipping, an overloaded machine
.PHONY: soak
soak: setup setup-majors setup-programs
	SEEDS=$(or $(SEEDS),5000) cargo test --locked --test integration -- --test-threads=1 --nocapture --include-ignored differential::as_
	SEEDS=2000000 cargo test --locked --test integration -- --test-threads=1 --nocapture fuzzed::
	cargo test --locked --test integration -- --test-threads=1 --nocapture --ignored leak::
	cargo test --locked --test integration -- --test-threads=1 --nocapture --ignored pitfalls::
	cargo test --locked --test integration -- --test-threads=1 --nocapture --ignored base_backup:: in_doubt:: overload:: relay:: sources::

## bench: throughput and CPU side by side: direct, PgBouncer, Bellwether; then WAL beside PostgreSQL's own, then the time without writes (BENCH=wal, BENCH=outage: this only)
.PHONY: bench
bench: setup setup-bench
	cargo build --release --locked
	cargo bench --locked --bench side_by_side --bench wal --bench outage -- $(BENCH)

## drivers: thirteen drivers, directly and through the endpoint; writes the table (DRIVERS='pgx,JDBC')
.PHONY: drivers
drivers: setup setup-drivers
	DRIVERS='$(DRIVERS)' cargo test --locked --test drivers -- --nocapture --test-threads=1

.PHONY: setup setup-second-major setup-majors setup-tools setup-programs setup-chaos setup-bench setup-drivers
setup:
	@integration/setup.sh base
setup-second-major:
	@integration/setup.sh second-major
setup-majors:
	@integration/setup.sh majors
setup-tools:
	@integration/setup.sh tools
setup-programs:
	@integration/setup.sh programs
setup-chaos:
	@integration/setup.sh chaos
setup-bench:
	@integration/setup.sh bench
setup-drivers:
	@integration/setup.sh drivers

## help: this list
.PHONY: help
help:
	@sed -n 's/^## \([^:]*\): /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
