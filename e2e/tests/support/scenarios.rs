//! Trust bundles, CRLs and clients, and who of them must get in: judged by every verifier and every server.

use countersign::pki::Serial;

use super::pki::{Ca, Client, CrlParams, hours};

/// What becomes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    In,
    Out(Why),
    /// Out, unless the verifier looks at the leaf alone.
    OutByChain(Why),
}

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Revoked,
    /// A CRL is past its nextUpdate.
    Expired,
    /// A CRL lies before its thisUpdate.
    Early,
    /// There is no CRL of the CA.
    Missing,
    /// There is none that is meant for this certificate.
    Scope,
    /// The signature of a CRL is not the CA's.
    Forged,
}

impl Why {
    /// OpenSSL's words for it, which nginx logs.
    pub const fn openssl(self) -> &'static str {
        match self {
            Self::Revoked => "certificate revoked",
            Self::Expired => "CRL has expired",
            Self::Early => "CRL is not yet valid",
            // For want of a CRL in scope `verify` says `different CRL scope` first; nginx goes on, and logs this.
            Self::Missing | Self::Scope => "unable to get certificate CRL",
            Self::Forged => "CRL signature failure",
        }
    }
}

use Verdict::{In, Out, OutByChain};
use Why::{Early, Expired, Forged, Missing, Revoked, Scope};

/// What a verifier is given, and what it must say.
pub struct Scenario {
    pub name: &'static str,
    /// Roots, PEM.
    pub ca: String,
    /// CRLs, PEM, one after the other, as a trust's Secret holds them.
    pub crl: String,
    pub clients: Vec<(Client, Verdict)>,
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = one_ca();
    all.extend(chains());
    all.extend(several_cas());
    all.extend(rotation());
    all.push(many_entries());
    all
}

fn scenario(
    name: &'static str,
    ca: String,
    crl: String,
    clients: Vec<(Client, Verdict)>,
) -> Scenario {
    Scenario { name, ca, crl, clients }
}

fn one_ca() -> Vec<Scenario> {
    let ca = Ca::root("Clients CA");
    let url = "http://crl.example.com/crl/clients/1.crl";
    let pair = |good, stolen| {
        let with_url = ca.issue("good, with a distribution point", Serial::random(), Some(url));
        vec![(ca.client("good"), good), (with_url, good), (ca.client("stolen"), stolen)]
    };
    let of = |name, params, good, stolen| {
        let clients = pair(good, stolen);
        let crl = ca.crl_of(params, &[clients[2].0.serial]);
        scenario(name, ca.pem(), crl, clients)
    };
    let usual = CrlParams::default();
    let expired = CrlParams { this_update: hours(-3), next_update: hours(-1), ..usual };
    let future = CrlParams { this_update: hours(1), ..usual };
    let century = CrlParams {
        this_update: "2025-12-31T23:59:59Z".parse().expect("a time"),
        next_update: "2050-01-01T00:00:00Z".parse().expect("a time"),
        ..usual
    };
    let large = CrlParams { number: u128::MAX, ..usual };

    // One bit of the signature.
    let mut changed = of("a CRL that was changed", usual, Out(Forged), Out(Forged));
    let mut der = pem::parse(&changed.crl).expect("PEM").into_contents();
    *der.last_mut().expect("a signature") ^= 1;
    changed.crl = pem::encode(&pem::Pem::new("X509 CRL", der));

    // What was there before must not outvote what is there now, whatever the order.
    let stale = CrlParams { number: 6, this_update: hours(-2), ..usual };
    let mut renewed = of("a CRL after the one before it", usual, In, Out(Revoked));
    renewed.crl = format!("{}{}", ca.crl_of(stale, &[]), renewed.crl);
    let mut reversed = of("a CRL before the one before it", usual, In, Out(Revoked));
    reversed.crl = format!("{}{}", reversed.crl, ca.crl_of(stale, &[]));

    vec![
        scenario("an empty CRL", ca.pem(), ca.crl(&[]), pair(In, In)),
        of("a revoked client", usual, In, Out(Revoked)),
        of("a CRL that ends in 2050", century, In, Out(Revoked)),
        of("a CRL with a number of 128 bits", large, In, Out(Revoked)),
        of("an expired CRL", expired, Out(Expired), Out(Expired)),
        of("a CRL of the future", future, Out(Early), Out(Early)),
        scenario(
            "only the CRL of another CA",
            ca.pem(),
            Ca::root("Other CA").crl(&[]),
            pair(Out(Missing), Out(Missing)),
        ),
        changed,
        renewed,
        reversed,
    ]
}

fn chains() -> Vec<Scenario> {
    let root = Ca::root("Root CA");
    let ca = root.below("Clients CA");
    let intermediate = ca.authority.facts().serial;
    let with = |name,
                root_crl: Option<String>,
                below_crl: fn(&Ca, Serial) -> Option<String>,
                good,
                stolen| {
        let clients = vec![(ca.client("good"), good), (ca.client("stolen"), stolen)];
        let below_crl = below_crl(&ca, clients[1].0.serial);
        let crl = root_crl.into_iter().chain(below_crl).collect();
        scenario(name, root.pem(), crl, clients)
    };
    let below = |ca: &Ca, stolen| Some(ca.crl(&[stolen]));
    let expired =
        CrlParams { this_update: hours(-3), next_update: hours(-1), ..CrlParams::default() };
    vec![
        with("a chain with both CRLs", Some(root.crl(&[])), below, In, Out(Revoked)),
        with("a chain without the root's CRL", None, below, OutByChain(Missing), Out(Revoked)),
        with(
            "a chain with an expired CRL of the root",
            Some(root.crl_of(expired, &[])),
            below,
            OutByChain(Expired),
            Out(Revoked),
        ),
        with(
            "a chain without the intermediate's CRL",
            Some(root.crl(&[])),
            |_, _| None,
            Out(Missing),
            Out(Missing),
        ),
        with(
            "a revoked intermediate",
            Some(root.crl(&[intermediate])),
            below,
            OutByChain(Revoked),
            Out(Revoked),
        ),
    ]
}

fn several_cas() -> Vec<Scenario> {
    let cas = ["First CA", "Second CA", "Third CA"].map(Ca::root);
    let clients = |good: [Verdict; 3], stolen: [Verdict; 3]| -> Vec<(Client, Verdict)> {
        let good = cas.iter().zip(good).map(|(ca, verdict)| (ca.client("good"), verdict));
        good.chain(cas.iter().zip(stolen).map(|(ca, verdict)| (ca.client("stolen"), verdict)))
            .collect()
    };
    let bundle: String = cas.iter().map(Ca::pem).collect();
    // The CRLs of these CAs, in this order.
    let crls = |clients: &[(Client, Verdict)], order: &[usize]| -> String {
        order.iter().map(|index| cas[*index].crl(&[clients[3 + index].0.serial])).collect()
    };
    let with = |name, order: &[usize], good: [Verdict; 3]| {
        let stolen = good.map(|good| if good == In { Out(Revoked) } else { good });
        let clients = clients(good, stolen);
        let crl = crls(&clients, order);
        scenario(name, bundle.clone(), crl, clients)
    };
    vec![
        with("several CAs", &[0, 1, 2], [In; 3]),
        with("several CAs, their CRLs in another order", &[2, 0, 1], [In; 3]),
        with("several CAs, one of them without a CRL", &[0, 2], [In, Out(Missing), In]),
    ]
}

/// A CA and the one that follows it under the same name: only the key identifier tells their CRLs apart.
fn rotation() -> Vec<Scenario> {
    let (old, new) = (Ca::root("Clients CA"), Ca::root("Clients CA"));
    let stolen = |good| if good == In { Out(Revoked) } else { good };
    let clients = |new_good| {
        let (stolen_old, stolen_new) = (old.client("stolen, old CA"), new.client("stolen, new CA"));
        // Serials are unique within a CA.
        let same_serial =
            new.issue("good, new CA, serial of a stolen one", stolen_old.serial, None);
        vec![
            (old.client("good, old CA"), In),
            (new.client("good, new CA"), new_good),
            (same_serial, new_good),
            (stolen_old, Out(Revoked)),
            (stolen_new, stolen(new_good)),
        ]
    };
    let with = |name, old_first: bool, crl_old_first: Option<bool>| {
        let clients = clients(if crl_old_first.is_some() { In } else { Out(Missing) });
        let (of_old, of_new) = (old.crl(&[clients[3].0.serial]), new.crl(&[clients[4].0.serial]));
        let ca = if old_first { [old.pem(), new.pem()] } else { [new.pem(), old.pem()] };
        let crl = match crl_old_first {
            Some(true) => [of_old, of_new].concat(),
            Some(false) => [of_new, of_old].concat(),
            None => of_old,
        };
        scenario(name, ca.concat(), crl, clients)
    };
    vec![
        with("same name: old CA, new CA; old CRL, new CRL", true, Some(true)),
        with("same name: old CA, new CA; new CRL, old CRL", true, Some(false)),
        with("same name: new CA, old CA; old CRL, new CRL", false, Some(true)),
        with("same name: new CA, old CA; new CRL, old CRL", false, Some(false)),
        with("same name: old CA, new CA; old CRL alone", true, None),
    ]
}

fn many_entries() -> Scenario {
    let ca = Ca::root("Large CA");
    let mut serials: Vec<Serial> = (0..20_000).map(|_| Serial::random()).collect();
    serials.sort();
    let stolen = |name, index: usize| (ca.issue(name, serials[index], None), Out(Revoked));
    let clients = vec![
        (ca.client("good"), In),
        stolen("first of the list", 0),
        stolen("in the middle of it", 10_000),
        stolen("last of the list", 19_999),
    ];
    scenario("20,000 entries", ca.pem(), ca.crl(&serials), clients)
}

/// CRLs of CAs other than ours that are partitioned by an issuingDistributionPoint (RFC 5280 section 5.2.5):
/// what a data plane makes of them when they stand in one file. The verdicts are OpenSSL's.
pub fn partitioned() -> Vec<Scenario> {
    let ca = Ca::root("Partitioned CA");
    let urls = ["http://crl.example.com/1.crl", "http://crl.example.com/2.crl"];
    let with = |name, shards: &[usize], ca_scope: Option<bool>, verdicts: [Verdict; 4]| {
        let issue = |name, url| ca.issue(name, Serial::random(), Some(url));
        let clients = [
            issue("good, shard 1", urls[0]),
            issue("good, shard 2", urls[1]),
            issue("stolen, shard 1", urls[0]),
            issue("stolen, shard 2", urls[1]),
        ];
        let crl = |shard: usize| {
            ca.partitioned_crl(
                &format!("fullname=URI:{}", urls[shard]),
                &[clients[2 + shard].serial],
            )
        };
        let mut crls: Vec<String> = shards.iter().map(|shard| crl(*shard)).collect();
        let of_cas = || ca.partitioned_crl("onlyCA=TRUE", &[]);
        match ca_scope {
            Some(true) => crls.insert(0, of_cas()),
            Some(false) => crls.push(of_cas()),
            None => {}
        }
        scenario(name, ca.pem(), crls.concat(), clients.into_iter().zip(verdicts).collect())
    };
    let right = [In, In, Out(Revoked), Out(Revoked)];
    let mut all = vec![
        with("both shards, then that of CAs", &[0, 1], Some(false), right),
        with("that of CAs, then both shards", &[1, 0], Some(true), right),
        with(
            "the shards alone",
            &[0, 1],
            None,
            [OutByChain(Scope), OutByChain(Scope), Out(Revoked), Out(Revoked)],
        ),
        with(
            "the other shard alone",
            &[1],
            Some(false),
            [Out(Scope), In, Out(Scope), Out(Revoked)],
        ),
    ];
    // What step-ca does by default: certificates#2250.
    let clients = vec![(ca.client("good"), Out(Scope)), (ca.client("stolen"), Out(Scope))];
    let crl = ca.partitioned_crl(&format!("fullname=URI:{}", urls[0]), &[clients[1].0.serial]);
    all.push(scenario("a client without a distribution point", ca.pem(), crl, clients));
    all
}
