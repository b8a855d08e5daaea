module countersign.dev/bench/crl

go 1.25
