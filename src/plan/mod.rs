//! What shall be: pure functions from a gathered world and a time to decisions, and from decisions to
//! the objects that carry them out. No client, no clock, no randomness.

pub mod adoption;
pub mod allow;
pub mod authority;
pub mod bundle;
pub mod canary;
pub mod cel;
pub mod crl;
pub mod delta;
pub mod destination;
pub mod enforcement;
pub mod gate;
pub mod headroom;
pub mod history;
pub mod identity;
pub mod ledger;
pub mod material;
pub mod names;
pub mod publication;
pub mod renewal;
pub mod retry;
pub mod revocation;
pub mod rollout;
pub mod rotation;
pub mod scope;
pub mod secret;
pub mod shard;
pub mod status;
pub mod template;
pub mod trial;
pub mod trust;
pub mod trust_secret;
