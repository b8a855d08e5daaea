//! Countersign: a Kubernetes operator for the whole life of client certificates.
pub mod api;
pub mod ingress;
pub mod pki;
pub mod plan;
