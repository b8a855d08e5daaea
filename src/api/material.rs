//! What a `ClientIdentity` says of its key and of the forms in which its Secret holds it. The words are
//! cert-manager's.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The private key of an identity.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.size) || (self.algorithm == 'ECDSA' && self.size in [256, 384, 521]) || (self.algorithm == 'RSA' && self.size in [2048, 3072, 4096])")
        .message("spec.privateKey.size must be 256, 384 or 521 with ECDSA, 2048, 3072 or 4096 with RSA, and not set with Ed25519"),
    validation = Rule::new("self.algorithm != 'Ed25519' || self.encoding == 'PKCS8'")
        .message("spec.privateKey.encoding must be PKCS8 with Ed25519: there is no other form of it")
)]
pub struct PrivateKeySpec {
    /// The algorithm of the key.
    #[serde(default)]
    pub algorithm: KeyAlgorithm,
    /// Its size in bits: 256 (default), 384 or 521 with ECDSA, 2048 (default), 3072 or 4096 with RSA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i32>,
    /// The form of `tls.key`.
    #[serde(default)]
    pub encoding: KeyEncoding,
    /// Does each certificate get a new key?
    #[serde(default)]
    pub rotation_policy: RotationPolicy,
}

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// On the curves of NIST: P-256, P-384, P-521.
    #[default]
    #[serde(rename = "ECDSA")]
    Ecdsa,
    /// RFC 8410.
    Ed25519,
    /// With public exponent 65537.
    #[serde(rename = "RSA")]
    Rsa,
}

/// How a key is written.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum KeyEncoding {
    /// `BEGIN PRIVATE KEY`.
    #[default]
    #[serde(rename = "PKCS8")]
    Pkcs8,
    /// The form of before: `BEGIN RSA PRIVATE KEY`, or `BEGIN EC PRIVATE KEY` (SEC 1) with ECDSA.
    #[serde(rename = "PKCS1")]
    Pkcs1,
}

/// What becomes of the key when a certificate is replaced.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum RotationPolicy {
    /// It is replaced too.
    #[default]
    Always,
    /// It stays, as long as it is of the wanted algorithm and size and its certificate was not revoked.
    Never,
}

/// Key stores beside the PEM files.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Keystores {
    /// PKCS #12 (RFC 7292): `keystore.p12` with key and chain, `truststore.p12` with the trust bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pkcs12: Option<Pkcs12Keystore>,
}

/// A PKCS #12 key store.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Pkcs12Keystore {
    /// Are the two files made?
    pub create: bool,
    /// The Secret, in the same namespace, that holds the password of both files.
    pub password_secret_ref: PasswordReference,
    /// How the files are encrypted.
    #[serde(default)]
    pub profile: Pkcs12Profile,
}

/// A password in a Secret.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct PasswordReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its key.
    #[serde(default = "password")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How a PKCS #12 file is encrypted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Pkcs12Profile {
    /// PBES2 with AES-256 and HMAC-SHA-256: OpenSSL 1.1 and later, Java 8u301 and later, Windows Server 2019.
    #[default]
    Modern,
    /// Triple DES and SHA-1, for devices that know nothing else. It protects little.
    Legacy,
}

/// A further form in which the Secret holds key or certificate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct AdditionalOutputFormat {
    /// Which form.
    #[serde(rename = "type")]
    pub type_: OutputFormat,
}

/// The further forms.
#[derive(
    Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
pub enum OutputFormat {
    /// `tls-combined.pem`: `tls.key`, then `tls.crt`.
    #[serde(rename = "CombinedPEM")]
    CombinedPem,
    /// `key.der`: `tls.key` without its PEM.
    #[serde(rename = "DER")]
    Der,
}

fn password() -> String {
    "password".to_owned()
}
