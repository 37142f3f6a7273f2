//! Compiles the ring for the model checker; `RING_HOLE` names a fence to leave out.

fn main() {
    println!("cargo::rerun-if-env-changed=RING_HOLE");
    println!("cargo::rustc-cfg=loom");
    if let Ok(hole) = std::env::var("RING_HOLE") {
        let known = ["ring_without_writer_fence", "ring_without_reader_fence"];
        assert!(known.contains(&hole.as_str()), "RING_HOLE is one of {known:?}");
        println!("cargo::rustc-cfg={hole}");
    }
}
