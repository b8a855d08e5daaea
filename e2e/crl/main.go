// Reads CRLs as Go's crypto/x509 does, and prints what they say as JSON. It parses strictly: an unknown version, two different signature
// algorithms, a negative serial or number, or an extension of broken form is an error.
//
// usage: crl CA.der CRL.der...
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

type extension struct {
	OID      string `json:"oid"`
	Critical bool   `json:"critical"`
}

type entry struct {
	Serial     string      `json:"serial"`
	RevokedAt  time.Time   `json:"revokedAt"`
	Reason     int         `json:"reason"`
	Extensions []extension `json:"extensions"`
}

type crl struct {
	SignedByCA bool        `json:"signedByCA"`
	IssuerIsCA bool        `json:"issuerIsCA"` // byte for byte
	KeyIDIsCAs bool        `json:"keyIDIsCAs"`
	Number     string      `json:"number"`
	ThisUpdate time.Time   `json:"thisUpdate"`
	NextUpdate time.Time   `json:"nextUpdate"`
	Extensions []extension `json:"extensions"`
	Entries    []entry     `json:"entries"`
}

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: crl CA.der CRL.der..."))
	}
	ca, err := x509.ParseCertificate(read(os.Args[1]))
	if err != nil {
		fail(err)
	}
	found := []crl{}
	for _, path := range os.Args[2:] {
		list, err := x509.ParseRevocationList(read(path))
		if err != nil {
			fail(fmt.Errorf("%s: %w", path, err))
		}
		found = append(found, describe(ca, list))
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fail(err)
	}
}

func describe(ca *x509.Certificate, list *x509.RevocationList) crl {
	described := crl{
		SignedByCA: list.CheckSignatureFrom(ca) == nil,
		IssuerIsCA: bytes.Equal(list.RawIssuer, ca.RawSubject),
		KeyIDIsCAs: bytes.Equal(list.AuthorityKeyId, ca.SubjectKeyId),
		ThisUpdate: list.ThisUpdate,
		NextUpdate: list.NextUpdate,
		Extensions: []extension{},
		Entries:    []entry{},
	}
	if list.Number != nil {
		described.Number = list.Number.String()
	}
	for _, each := range list.Extensions {
		described.Extensions = append(described.Extensions, extension{each.Id.String(), each.Critical})
	}
	for _, each := range list.RevokedCertificateEntries {
		one := entry{each.SerialNumber.Text(16), each.RevocationTime, each.ReasonCode, []extension{}}
		for _, extra := range each.Extensions {
			one.Extensions = append(one.Extensions, extension{extra.Id.String(), extra.Critical})
		}
		described.Entries = append(described.Entries, one)
	}
	return described
}

func read(path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		fail(err)
	}
	return content
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}
