//! The bytes of our CRLs, against the rules that they must follow (RFC 5280 section 5), as OpenSSL, Go's
//! crypto/x509 and rustls-webpki read them, and whom OpenSSL and rustls-webpki let in by them.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use countersign::pki::crl::{self, Entry};
use countersign::pki::{KeyType, Serial};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use support::pki::{Ca, Client, CrlParams, REASONS, entry, folder, sign_crl};
use support::scenarios::{self, Scenario, Verdict};
use support::{ask, openssl, program, root};

/// What Go says of CRLs of a CA.
fn go(ca: &Ca, crls: &[&[u8]]) -> Vec<Value> {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("ca.der"), ca.authority.certificate()).expect("written");
    let mut command = Command::new(go_reader());
    command.arg(path("ca.der"));
    for (index, crl) in crls.iter().enumerate() {
        let path = path(&format!("{index}.der"));
        fs::write(&path, crl).expect("written");
        command.arg(path);
    }
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The program `e2e/crl`, built once.
fn go_reader() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let path = root().join("target/e2e/crl-reader");
        let status = Command::new(program("go"))
            .args(["build", "-o"])
            .arg(&path)
            .arg(".")
            .current_dir(root().join("e2e/crl"))
            .envs([("CGO_ENABLED", "0"), ("GOWORK", "off")])
            .status();
        assert!(status.expect("go runs").success(), "e2e/crl does not build");
        path
    })
}

/// The tags and values of a CRL as OpenSSL reads them, one a line: `2: UTCTIME :491231235959Z`.
fn asn1(crl: &[u8]) -> Vec<String> {
    let folder = folder();
    fs::write(folder.path().join("crl.der"), crl).expect("written");
    let text = openssl(folder.path(), &["asn1parse", "-inform", "DER", "-in", "crl.der"]);
    let line = |line: &str| -> Option<String> {
        // Such as `  121:d=2  hl=2 l=  13 prim: UTCTIME           :491231235959Z`
        let (depth, rest) = line.split_once("d=")?.1.split_once(' ')?;
        let value = rest.split_once(": ")?.1.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(format!("{depth}: {value}"))
    };
    text.lines().filter_map(line).collect()
}

/// The same, without what lies deeper in issuer and extensions, and with the signature's length left out.
fn outline(crl: &[u8]) -> Vec<String> {
    asn1(crl).into_iter().filter(|line| !line.contains("BIT STRING")).collect()
}

fn second(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Serials of each length, and where the first bit asks for another octet; all within 20 octets of DER.
fn serials() -> Vec<Serial> {
    let texts = [
        "01",
        "7f",
        "80",
        "ff",
        "0100",
        "7fffffffffffffffffffffffffffffff",
        "80000000000000000000000000000000",
    ];
    let longest = "7fffffffffffffffffffffffffffffffffffffff";
    texts.iter().chain([&longest]).map(|text| text.parse().expect("a serial")).collect()
}

#[test]
fn a_crl_is_read_alike_whatever_it_is_signed_with_and_however_long_it_is() {
    for key_type in KeyType::ALL {
        let ca = Ca::root_of(key_type, "Clients CA");
        let reasons: Vec<Entry> = REASONS.map(|reason| entry(Serial::random(), reason)).to_vec();
        let many = (0..20_000).map(|index| entry(Serial::random(), REASONS[index % 6])).collect();
        let short = serials().into_iter().map(|serial| entry(serial, Some(1))).collect();
        for mut entries in [vec![], reasons, short, many] {
            entries.sort_by_key(|entry| entry.serial);
            judge_bytes(&ca, CrlParams::default(), &entries);
        }
    }
}

/// Every rule that holds for every CRL.
fn judge_bytes(ca: &Ca, params: CrlParams, entries: &[Entry]) {
    let der = sign_crl(&ca.authority, params, entries);
    let extension = |oid: &str| json!({ "oid": oid, "critical": false });
    let wanted: Vec<Value> = entries
        .iter()
        .map(|entry| {
            json!({
                "serial": entry.serial.to_string().trim_start_matches('0'),
                "revokedAt": entry.revoked_at.to_string(),
                "reason": entry.reason.unwrap_or(0),
                // reasonCode, or nothing.
                "extensions": entry.reason.map(|_| extension("2.5.29.21")).into_iter().collect::<Vec<_>>(),
            })
        })
        .collect();
    let read = &go(ca, &[&der])[0];
    assert_eq!(
        *read,
        json!({
            "signedByCA": true,
            "issuerIsCA": true,
            "keyIDIsCAs": true,
            "number": params.number.to_string(),
            "thisUpdate": params.this_update.to_string(),
            "nextUpdate": params.next_update.to_string(),
            // Authority key identifier and CRL number: no issuingDistributionPoint, no delta, nothing else.
            "extensions": [extension("2.5.29.35"), extension("2.5.29.20")],
            "entries": wanted,
        })
    );
    // In the order of their numbers, none twice.
    assert!(entries.windows(2).all(|pair| pair[0].serial < pair[1].serial));

    let folder = folder();
    fs::write(folder.path().join("ca.pem"), ca.pem()).expect("written");
    fs::write(folder.path().join("crl.pem"), crl::to_pem(&der)).expect("written");
    let command = ["crl", "-in", "crl.pem", "-CAfile", "ca.pem", "-noout", "-text"];
    let text = openssl(folder.path(), &command);
    for words in
        ["verify OK", "Version 2 (0x1)", "X509v3 CRL Number", "X509v3 Authority Key Identifier"]
    {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    assert_eq!(text.matches("Serial Number: ").count(), entries.len());
    assert_eq!(text.contains("No Revoked Certificates"), entries.is_empty());
    assert!(!text.contains("critical"), "{text}");

    let list = webpki::BorrowedCertRevocationList::from_der(&der).expect("webpki takes it");
    assert_eq!(list.into_iter().count(), entries.len());
}

#[test]
fn the_bytes_are_what_rfc_5280_asks_for() {
    let ca = Ca::root("Clients CA");
    let entries = [
        Entry {
            serial: "7f".parse().expect("a serial"),
            revoked_at: second("2049-12-31T23:59:59Z"),
            reason: None,
        },
        Entry {
            serial: "80".parse().expect("a serial"),
            revoked_at: second("2050-01-01T00:00:00Z"),
            reason: Some(9),
        },
    ];
    let params = CrlParams {
        number: 0x80,
        this_update: second("2049-12-31T23:59:59.999Z"),
        next_update: second("2050-01-01T00:00:00.5Z"),
    };
    let folder = folder();
    fs::write(folder.path().join("ca.der"), ca.authority.certificate()).expect("written");
    let der = crl::sign(
        &ca.authority,
        crl::CrlNumber(params.number),
        params.this_update,
        params.next_update,
        &entries,
    );
    let der = der.expect("a CRL");
    let key_id = countersign::pki::hex(&ca.authority.facts().key_id).to_uppercase();
    // ecdsa-with-SHA256 has no parameters, and stands in the same form inside and outside.
    let algorithm = |depth: u8| {
        [format!("{depth}: SEQUENCE"), format!("{}: OBJECT :ecdsa-with-SHA256", depth + 1)]
    };
    let mut expected: Vec<String> =
        ["0: SEQUENCE", "1: SEQUENCE", "2: INTEGER :01"].map(str::to_owned).to_vec();
    expected.extend(algorithm(2));
    expected.extend(
        [
            // The issuer, as the CA's certificate spells its subject.
            "2: SEQUENCE",
            "3: SET",
            "4: SEQUENCE",
            "5: OBJECT :organizationName",
            "5: UTF8STRING :Example",
            "3: SET",
            "4: SEQUENCE",
            "5: OBJECT :commonName",
            "5: UTF8STRING :Clients CA",
            // UTCTime until 2049, GeneralizedTime from 2050 on; Z and no fractions of a second.
            "2: UTCTIME :491231235959Z",
            "2: GENERALIZEDTIME :20500101000000Z",
            "2: SEQUENCE",
            "3: SEQUENCE",
            "4: INTEGER :7F",
            "4: UTCTIME :491231235959Z",
            "3: SEQUENCE",
            "4: INTEGER :80",
            "4: GENERALIZEDTIME :20500101000000Z",
            "4: SEQUENCE",
            "5: SEQUENCE",
            // Not critical: there is no BOOLEAN.
            "6: OBJECT :X509v3 CRL Reason Code",
            "6: OCTET STRING [HEX DUMP]:0A0109",
            "2: cont [ 0 ]",
            "3: SEQUENCE",
            "4: SEQUENCE",
            "5: OBJECT :X509v3 Authority Key Identifier",
        ]
        .map(str::to_owned),
    );
    expected.push(format!("5: OCTET STRING [HEX DUMP]:30168014{key_id}"));
    expected.extend(
        ["4: SEQUENCE", "5: OBJECT :X509v3 CRL Number", "5: OCTET STRING [HEX DUMP]:02020080"]
            .map(str::to_owned),
    );
    expected.extend(algorithm(1));
    assert_eq!(outline(&der), expected);

    // An empty list is left out, not written as empty.
    let empty = outline(&sign_crl(&ca.authority, CrlParams::default(), &[]));
    let extensions = empty.iter().position(|line| line == "2: cont [ 0 ]").expect("extensions");
    assert!(empty[extensions - 1].starts_with("2: UTCTIME"), "{empty:#?}");
}

#[test]
fn numbers_are_encoded_as_positive_integers() {
    let ca = Ca::root("Clients CA");
    for number in [0, 1, 127, 128, 255, 256, u128::from(u64::MAX), u128::MAX] {
        let params = CrlParams { number, ..CrlParams::default() };
        judge_bytes(&ca, params, &[]);
    }
}

#[test]
fn a_serial_stands_in_the_crl_as_it_stands_in_the_certificate() {
    let ca = Ca::root("Clients CA");
    for serial in serials() {
        let client = ca.issue("client", serial, None);
        let of_certificate = asn1(&client.leaf)[4].clone();
        let crl = asn1(&sign_crl(&ca.authority, CrlParams::default(), &[entry(serial, None)]));
        let of_crl = crl.iter().find(|line| line.starts_with("4: INTEGER")).expect("an entry");
        assert_eq!(of_crl[3..], of_certificate[3..], "{serial}");
    }
}

/// What OpenSSL says of a client: nothing if it may come in.
fn openssl_verify(scenario: &Scenario, client: &Client, flag: &str) -> Option<String> {
    let folder = folder();
    let write =
        |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("ca.pem", &scenario.ca);
    write("crl.pem", &scenario.crl);
    client.write(folder.path());
    let verify = ["verify", "-x509_strict", "-purpose", "sslclient", flag];
    let files = ["-CAfile", "ca.pem", "-CRLfile", "crl.pem", "-untrusted", "tls.crt", "tls.crt"];
    let (good, text) = ask(folder.path(), "openssl", &[&verify[..], &files].concat());
    // Such as `error 23 at 0 depth lookup: certificate revoked`
    let reason = text.split(" depth lookup: ").nth(1).and_then(|rest| rest.lines().next());
    assert_eq!(good, reason.is_none(), "{text}");
    reason.map(str::to_owned)
}

/// The blocks of a PEM text.
fn ders(text: &str) -> Vec<Vec<u8>> {
    let blocks = pem::parse_many(text).expect("PEM");
    blocks.into_iter().map(pem::Pem::into_contents).collect()
}

/// What webpki says of a client.
fn webpki_verify(
    scenario: &Scenario,
    client: &Client,
    depth: webpki::RevocationCheckDepth,
) -> Result<(), webpki::Error> {
    let crls: Vec<webpki::CertRevocationList<'_>> = ders(&scenario.crl)
        .iter()
        .map(|der| webpki::OwnedCertRevocationList::from_der(der).expect("a CRL").into())
        .collect();
    let crls: Vec<&webpki::CertRevocationList<'_>> = crls.iter().collect();
    let options = webpki::RevocationOptionsBuilder::new(&crls)
        .expect("CRLs")
        .with_depth(depth)
        .with_expiration_policy(webpki::ExpirationPolicy::Enforce)
        .build();
    let roots: Vec<CertificateDer<'_>> =
        ders(&scenario.ca).into_iter().map(CertificateDer::from).collect();
    let anchors: Vec<_> =
        roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).expect("a CA")).collect();
    let now = Duration::from_secs(Timestamp::now().as_second().try_into().expect("after 1970"));
    let leaf = webpki::EndEntityCert::try_from(&client.leaf).expect("a certificate");
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &client.intermediates,
        UnixTime::since_unix_epoch(now),
        webpki::KeyUsage::client_auth(),
        Some(options),
        None,
    )
    .map(|_| ())
}

#[test]
fn openssl_lets_in_and_refuses_as_the_crls_say() {
    for scenario in scenarios::all() {
        for (client, verdict) in &scenario.clients {
            let (leaf, chain) = match verdict {
                Verdict::In => (None, None),
                Verdict::Out(why) => (Some(why), Some(why)),
                Verdict::OutByChain(why) => (None, Some(why)),
            };
            for (flag, why) in [("-crl_check", leaf), ("-crl_check_all", chain)] {
                let said = openssl_verify(&scenario, client, flag);
                let wanted = why.map(|why| why.openssl());
                assert_eq!(said.as_deref(), wanted, "{}: {}: {flag}", scenario.name, client.name);
            }
        }
    }
}

/// rustls differs in three ways, and users of a trust's bundle have to know two of them. It takes the first CRL
/// with the issuer's name, whatever its key identifier or number: a CA that follows another one under the same
/// name shuts out the clients of one of the two, and an older CRL before the newer one lets in whoever was
/// revoked in between. A bundle of ours holds one CRL for each CA. It does not look at thisUpdate.
#[test]
fn webpki_differs_from_the_others_where_names_or_crls_are_there_twice_and_in_nothing_else() {
    use webpki::RevocationCheckDepth::{Chain, EndEntity};
    let mut others = Vec::new();
    for scenario in scenarios::all() {
        for (client, verdict) in &scenario.clients {
            let wanted =
                [matches!(verdict, Verdict::In | Verdict::OutByChain(_)), *verdict == Verdict::In];
            let is =
                [EndEntity, Chain].map(|depth| webpki_verify(&scenario, client, depth).is_ok());
            if is != wanted {
                assert_eq!(is[0], is[1], "{}: {}", scenario.name, client.name);
                let is = if is[0] { "in" } else { "out" };
                others.push(format!("{}: {}: {is}", scenario.name, client.name));
            }
        }
    }
    let of_new_ca = ["good, new CA", "good, new CA, serial of a stolen one"];
    let same_name = |order: &str, shut_out: &[&str]| {
        shut_out
            .iter()
            .map(|client| format!("same name: {order}: {client}: out"))
            .collect::<Vec<_>>()
    };
    let expected = [
        vec![
            "a CRL of the future: good: in".to_owned(),
            "a CRL of the future: good, with a distribution point: in".to_owned(),
            "a CRL after the one before it: stolen: in".to_owned(),
        ],
        same_name("old CA, new CA; old CRL, new CRL", &of_new_ca),
        same_name("old CA, new CA; new CRL, old CRL", &["good, old CA"]),
        same_name("new CA, old CA; old CRL, new CRL", &of_new_ca),
        same_name("new CA, old CA; new CRL, old CRL", &["good, old CA"]),
    ];
    assert_eq!(others, expected.concat());
}

#[test]
fn openssl_puts_partitioned_crls_together_and_a_missing_part_shuts_out() {
    let said = |scenario: &Scenario, flag| -> Vec<Option<String>> {
        scenario.clients.iter().map(|(client, _)| openssl_verify(scenario, client, flag)).collect()
    };
    let (scope, revoked) =
        (Some("different CRL scope".to_owned()), Some("certificate revoked".to_owned()));
    let right = vec![None, None, revoked.clone(), revoked.clone()];
    let by_name = |name: &str| {
        scenarios::partitioned()
            .into_iter()
            .find(|scenario| scenario.name == name)
            .expect("a scenario")
    };
    for flag in ["-crl_check", "-crl_check_all"] {
        for name in ["both shards, then that of CAs", "that of CAs, then both shards"] {
            assert_eq!(said(&by_name(name), flag), right, "{name}: {flag}");
        }
        let other = by_name("the other shard alone");
        assert_eq!(said(&other, flag), [scope.clone(), None, scope.clone(), revoked.clone()]);
        let none = by_name("a client without a distribution point");
        assert_eq!(said(&none, flag), [scope.clone(), scope.clone()]);
    }
    // The root has no CRL of its scope.
    let alone = by_name("the shards alone");
    assert_eq!(said(&alone, "-crl_check"), right);
    assert_eq!(said(&alone, "-crl_check_all"), [scope.clone(), scope, revoked.clone(), revoked]);
}
