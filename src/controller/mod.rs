//! The controllers: each gathers a world, asks its planner, and carries the decision out.

mod adoption;
pub mod authority;
pub mod bundle;
pub mod canary;
mod compaction;
pub mod context;
mod crl;
mod delta;
pub mod error;
mod generations;
pub mod identity;
mod material;
mod orphans;
mod policies;
mod probe;
mod publish;
pub mod queue;
pub mod queues;
pub mod revocation;
mod rollout;
pub mod run;
pub mod servers;
mod settle;
mod shards;
mod signing;
pub mod trust;
pub mod upkeep;
