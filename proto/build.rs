//! Generates the Rust types of `cilium.*` and `tollgate.*`, and the descriptors that JSON is read by.
//!
//! Reads only files of this crate; needs no `protoc` and no network.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protox::Compiler;
use protox::prost::Message;

/// Our definitions, and the stand-ins for what they import of Envoy.
const INCLUDES: [&str; 2] = ["proto", "stubs"];

/// What types are generated for.
const OURS: [&str; 2] = ["proto/cilium", "proto/tollgate/tenant/v1"];

fn main() -> Result<(), Box<dyn Error>> {
    for directory in INCLUDES {
        println!("cargo::rerun-if-changed={directory}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = Compiler::new(INCLUDES)?;
    compiler.include_imports(true).include_source_info(true);
    for directory in OURS {
        for file in proto_files(Path::new(directory))? {
            compiler.open_file(file)?;
        }
    }

    let mut descriptors = compiler.file_descriptor_set();
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .out_dir(&out)
        // A prefix covers every message and enum below it.
        .extern_path(".envoy", "::envoy_types::pb::envoy")
        .extern_path(".xds", "::envoy_types::pb::xds")
        // envoy-types brings its own well-known types; without this line prost-types would be used.
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        // Sorted maps: the same message always has the same bytes.
        .btree_map(".")
        .compile_fds_with_config(descriptors.clone(), config)?;

    // Comments are for the generated documentation only.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

/// Every `.proto` file in `directory`, sorted so that builds are reproducible.
fn proto_files(directory: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
