//! `countersign crds`: the definitions as YAML.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::api::crds;

/// The files that `countersign crds --output` writes: name and content.
pub fn files() -> io::Result<Vec<(String, String)>> {
    let render = |(name, crd)| {
        let yaml = serde_yaml::to_string(&crd).map_err(io::Error::other)?;
        Ok((name, format!("# Written by `countersign crds`; a test compares.\n{yaml}")))
    };
    crds().into_iter().map(render).collect()
}

pub(super) fn run(output: Option<&Path>) -> io::Result<()> {
    let Some(folder) = output else {
        let documents: Vec<String> = files()?.into_iter().map(|(_, text)| text).collect();
        return io::stdout().write_all(documents.join("---\n").as_bytes());
    };
    fs::create_dir_all(folder)?;
    for (name, text) in files()? {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
