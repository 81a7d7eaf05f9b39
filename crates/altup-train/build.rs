//! Lets the programs of this crate find the libtorch that they were linked with.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // torch-sys tells it, where the feature `tch` brings it in.
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB")
        && std::env::var_os("CARGO_CFG_UNIX").is_some()
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
