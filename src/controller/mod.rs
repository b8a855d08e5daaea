//! The controllers: each gathers a world, asks its planner, and carries the decision out.

pub mod authority;
pub mod context;
mod crl;
pub mod error;
mod generations;
pub mod identity;
mod material;
mod orphans;
mod publish;
pub mod queue;
pub mod revocation;
mod rollout;
pub mod run;
mod settle;
pub mod trust;
pub mod upkeep;
