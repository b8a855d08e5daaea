module countersign.dev/e2e/crl

go 1.24
