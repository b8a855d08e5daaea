SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test soak lint audit bench bench-crl bench-crl-http bench-gate bench-ledger bench-revocation fuzz crds image clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s'|'

demo: ## the quick start in a kind cluster, step by step; KEEP=1 leaves it up
	@e2e/demo

test: ## every test, in a kind cluster too; KEEP=1 leaves it up
	@e2e/suite

soak: ## random faults and kills under load for SOAK_SECONDS=600, every version of every CRL judged; SEED=... repeats the choices
	e2e/prepare cc openssl
	COUNTERSIGN_TOOLS=$$(e2e/kind/cluster tools etcd kube-apiserver) cargo test --locked --test faults soak -- --ignored --nocapture

lint: ## formatting, clippy, the chart, licences (with cargo-deny), shell scripts (with shellcheck)
	cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked $$(sed -n 's|^path = "e2e/tests/\(.*\)\.rs"|--test \1|p' Cargo.toml) -- -D warnings
	"$$(e2e/kind/cluster tools helm)/helm" lint --strict charts/countersign
	! command -v cargo-deny >/dev/null || cargo deny --locked check bans licenses sources
	! command -v shellcheck >/dev/null || shellcheck -x e2e/{demo,dependencies,prepare,setup,suite} e2e/alerts/test e2e/{contour,envoy-gateway,haproxy-ingress,traefik}/install e2e/traefik/crds e2e/istio/crds e2e/kind/cluster e2e/kind/test fuzz/{run,seeds}

audit: ## known vulnerabilities of dependencies; needs cargo-deny and, for the list of them, the internet
	cargo deny --locked check advisories

bench: ## measurements, with cert-manager in the same run
	@e2e/bench/run

bench-revocation: ## from a CertificateRevocation to a refused handshake in nginx, HAProxy and Envoy; a quarter of an hour
	@e2e/bench/revocation

bench-crl: ## CRLs of a million entries, with Go and OpenSSL in the same run
	@e2e/bench/crl/run

bench-ledger: ## serials recorded per second, with group commit and without
	@e2e/bench/ledger

bench-crl-http: ## CRLs over HTTP, with nginx in the same run; needs wrk
	@e2e/bench/crl-http

bench-gate: ## decisions of the gate with 100,000 revoked certificates, with nginx's own check in the same run; needs wrk
	@e2e/bench/gate

fuzz: ## every parser of foreign bytes, for FUZZ_SECONDS=60 each
	@fuzz/run

crds: ## write the custom resource definitions anew, in both places
	cargo run --locked --quiet -- crds --output crds
	cp crds/*.yaml charts/countersign/crd-files/

image: ## the operator's image countersign:dev, in the cluster's engine
	e2e/kind/cluster up
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --bin countersign --target x86_64-unknown-linux-gnu
	install -D -m 755 target/x86_64-unknown-linux-gnu/release/countersign target/image/countersign
	e2e/kind/cluster build countersign:dev target/image Dockerfile

clean: ## remove what was built here; the cluster's cache stays
	e2e/kind/cluster down
	cargo clean
