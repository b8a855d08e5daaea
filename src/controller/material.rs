//! The Secret of an identity as it is found, and what goes into it: keys and key stores.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};

use super::context::{Context, Signing};
use super::error::Error;
use crate::api::ClientIdentity;
use crate::cluster::Key;
use crate::pki::keystore::Salt;
use crate::pki::{KeyType, PrivateKey};
use crate::plan::material::{self, KeySource, Keystores, Material, Password};
use crate::plan::secret::{
    Published, SecretView, is_complete, ownership, present_key, view_metadata, view_secret,
};
use crate::plan::template::is_dressed;

/// A Secret as it was found.
pub(super) struct Found {
    /// What it holds.
    pub(super) view: SecretView,
    /// All of it, when it was read.
    pub(super) secret: Option<Secret>,
    /// The password of the key stores, when it was read and there shall be some.
    pub(super) password: Option<Password>,
    /// Was it read? Otherwise its annotations tell.
    pub(super) whole: bool,
    /// Does it wear the labels, annotations and owner reference that the spec wants?
    pub(super) dressed: bool,
    /// Its resourceVersion.
    pub(super) version: Option<String>,
}

impl Found {
    /// An annotation that we wrote.
    pub(super) fn noted(&self, name: &str) -> Option<&String> {
        self.secret.as_ref()?.annotations().get(name)
    }
}

/// Reads the Secret, or, when its data is known to be what its annotations say, only these.
pub(super) async fn gather_secret(
    context: &Context,
    identity: &ClientIdentity,
    signing: Option<&Signing>,
    now: Timestamp,
    whole: bool,
) -> Result<Found, Error> {
    let namespace = identity.namespace().unwrap_or_default();
    let name = &identity.spec.secret_name;
    let seen = context.stores.secrets.get(&Key::new(&namespace, name));
    if let Some(seen) = seen.filter(|seen| !whole && context.is_checked(&Key::of(identity), seen))
        && ownership(identity, &seen.metadata).is_none()
        && is_complete(identity, &seen.metadata)
        && let Some(current) = view_metadata(&seen.metadata)
    {
        return Ok(Found {
            view: SecretView::Good(current),
            secret: None,
            password: None,
            whole: false,
            dressed: is_dressed(identity, &seen.metadata),
            version: seen.metadata.resource_version.clone(),
        });
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let secret = api
        .get_opt(name)
        .await
        .map_err(|source| Error::Read { object: format!("Secret {namespace}/{name}"), source })?;
    let password = password(context, identity).await?;
    let generations = signing.map(|signing| signing.generations.as_slice()).unwrap_or_default();
    let trusted: Vec<_> = generations.iter().map(|one| &*one.ca).collect();
    let published = signing.map(|signing| Published { trusted: &trusted, bundle: &signing.bundle });
    let view = || view_secret(identity, secret.as_ref(), published, password.as_ref(), now);
    Ok(Found {
        // Making key stores again, to compare them, takes its time.
        view: if password.is_some() { tokio::task::block_in_place(view) } else { view() },
        whole: true,
        dressed: secret.as_ref().is_some_and(|secret| is_dressed(identity, &secret.metadata)),
        version: secret.as_ref().and_then(ResourceExt::resource_version),
        secret,
        password,
    })
}

/// The password of an identity's key stores, when it shall have some.
async fn password(context: &Context, identity: &ClientIdentity) -> Result<Option<Password>, Error> {
    let Some(pkcs12) = material::pkcs12(&identity.spec) else {
        return Ok(None);
    };
    let namespace = identity.namespace().unwrap_or_default();
    let reference = &pkcs12.password_secret_ref;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let secret = api.get_opt(&reference.name).await.map_err(|source| Error::Read {
        object: format!("Secret {namespace}/{}", reference.name),
        source,
    })?;
    let value = secret.as_ref().map(|secret| {
        let data = secret.data.as_ref()?;
        Some(data.get(&reference.key)?.0.as_slice())
    });
    Ok(Some(material::password(pkcs12, value)))
}

/// The private key of a new certificate; none when the client keeps it.
pub(super) async fn private_key(
    source: &KeySource,
    present: Option<&Secret>,
) -> Option<PrivateKey> {
    let key_type = match source {
        KeySource::Requested(_) => return None,
        KeySource::Fresh(key_type) | KeySource::Kept(key_type) => *key_type,
    };
    let kept = match source {
        KeySource::Kept(_) => present.and_then(present_key),
        _ => None,
    };
    match kept.filter(|key| key.key_type() == key_type) {
        Some(key) => Some(key),
        None => Some(generate(key_type).await),
    }
}

/// Adds the key stores that a spec asks for; why they can't be made, if so.
pub(super) fn add_keystores(
    identity: &ClientIdentity,
    material: &mut Material<'_>,
    password: Option<&Password>,
) -> Option<String> {
    let password = match password? {
        Ok(password) => password,
        Err(why) => return Some(why.clone()),
    };
    // Deriving keys from a password takes its time.
    let seal = || Keystores::seal(identity, material, password, Salt::random());
    match tokio::task::block_in_place(seal) {
        Ok(keystores) => {
            material.keystores = Some(keystores);
            None
        }
        Err(error) => Some(format!("spec.keystores.pkcs12: {error}")),
    }
}

async fn generate(key_type: KeyType) -> PrivateKey {
    match key_type {
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
            // Up to seconds: not on a thread that others wait for.
            let made = tokio::task::spawn_blocking(move || PrivateKey::generate(key_type));
            made.await.expect("generating a key does not panic")
        }
        _ => PrivateKey::generate(key_type),
    }
}
