// Go's own encoder and parser of CRLs, for comparison.
//
//	peer make <entries>            builds a CRL, and another one with one entry more
//	peer parse <crl.der> <ca.pem>  parses a CRL and checks its signature
//
// Prints seconds and octets as JSON.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "make" {
		build(os.Args[2])
	} else if len(os.Args) == 4 && os.Args[1] == "parse" {
		parse(os.Args[2], os.Args[3])
	} else {
		log.Fatal("usage: peer make <entries> | peer parse <crl.der> <ca.pem>")
	}
}

func build(entries string) {
	count, err := strconv.Atoi(entries)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Peer CA"}, SubjectKeyId: []byte{1, 2, 3, 4},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	ca, err := x509.ParseCertificate(der)
	must(err)

	revoked := make([]x509.RevocationListEntry, count+1)
	for i := range revoked {
		serial := make([]byte, 16)
		must2(rand.Read(serial))
		serial[0] = serial[0]&0x7f | 1
		revoked[i] = x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: now.Add(-time.Duration(i) * time.Second), ReasonCode: 1,
		}
	}
	list := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	runtime.GC()
	before := memory("VmRSS")
	must(os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
	start := time.Now()
	list.RevokedCertificateEntries = revoked[:count]
	crl, err := x509.CreateRevocationList(rand.Reader, list, ca, key)
	must(err)
	cold, size := time.Since(start), len(crl)

	start = time.Now()
	list.RevokedCertificateEntries = revoked
	_, err = x509.CreateRevocationList(rand.Reader, list, ca, key)
	must(err)
	tell(map[string]any{"cold": cold.Seconds(), "again": time.Since(start).Seconds(), "bytes": size, "memory": memory("VmHWM") - before})
}

func parse(path, caPath string) {
	der, err := os.ReadFile(path)
	must(err)
	text, err := os.ReadFile(caPath)
	must(err)
	block, _ := pem.Decode(text)
	ca, err := x509.ParseCertificate(block.Bytes)
	must(err)
	before := memory("VmRSS")
	must(os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
	start := time.Now()
	crl, err := x509.ParseRevocationList(der)
	must(err)
	must(crl.CheckSignatureFrom(ca))
	tell(map[string]any{"parse": time.Since(start).Seconds(), "entries": len(crl.RevokedCertificateEntries), "memory": memory("VmHWM") - before})
}

// memory is what Linux counts for this process, in octets.
func memory(field string) int {
	status, err := os.ReadFile("/proc/self/status")
	must(err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, field) {
			kib, err := strconv.Atoi(strings.Fields(line)[1])
			must(err)
			return kib * 1024
		}
	}
	log.Fatalf("no %s", field)
	return 0
}

func tell(figures map[string]any) {
	text, err := json.Marshal(figures)
	must(err)
	fmt.Println(string(text))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must2(_ int, err error) { must(err) }
