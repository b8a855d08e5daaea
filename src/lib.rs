//! Countersign: a Kubernetes operator for the whole life of client certificates.
//!
//! Data flows one way: stores and reads gather a world, `plan` decides over it, `pki` signs and
//! checks, `cluster` writes. See the modules from left to right:
//! `cli -> controller -> {cluster, plan, ingress, api, pki}`.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod ingress;
pub mod metrics;
pub mod pki;
pub mod plan;
pub mod serve;
pub mod telemetry;
pub mod token;
