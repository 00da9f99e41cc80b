//! Compiles `bpf/*.bpf.c` to bitcode, links it into one object with bpf-linker, and generates the
//! Rust types of what crosses to userspace by libbpf-rs's skeleton generator.

use std::env;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use bpf_linker::{Cpu, Linker, LinkerInput, LinkerOptions, OptLevel, OutputType};
use libbpf_cargo::SkeletonBuilder;

const CLANG: &str = "clang-22";
/// An object of its own: a kernel may refuse it alone.
const SOCKETS: &str = "sockets.bpf.c";
const LLVM_NM: &str = "llvm-nm-22";

fn main() -> Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let source = manifest.join("../../bpf").canonicalize().context("finding the bpf folder")?;
    println!("cargo:rerun-if-changed={}", source.display());

    // Set by libbpf-sys: bpf_helpers.h and friends of the libbpf that will load the object.
    let libbpf_headers = PathBuf::from(
        env::var("DEP_BPF_INCLUDE").context("libbpf-sys did not say where its headers are")?,
    );

    let mut bitcode = Vec::new();
    for program in bpf_sources(&source)? {
        let compiled = compile(&program, &source, &libbpf_headers, &out)?;
        if program.file_name().is_some_and(|name| name == SOCKETS) {
            link(&[compiled], &out.join("sockets.bpf.o"))?;
        } else {
            bitcode.push(compiled);
        }
    }
    let object = out.join("natbridge.bpf.o");
    link(&bitcode, &object)?;
    // The types come from the maps alone: linking does not merge what two hooks know of the same
    // kernel struct, and the generator would define it twice.
    let maps = out.join("maps.bpf.o");
    link(&[out.join("maps.bc")], &maps)?;
    SkeletonBuilder::new()
        .obj(&maps)
        .generate(out.join("natbridge.skel.rs"))
        .context("generating the skeleton")?;
    Ok(())
}

/// The hooks' source files, in a stable order so that builds repeat.
fn bpf_sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".bpf.c") {
            sources.push(path);
        }
    }
    sources.sort();
    if sources.is_empty() {
        bail!("no *.bpf.c in {}", folder.display());
    }
    Ok(sources)
}

fn compile(source: &Path, include: &Path, libbpf: &Path, out: &Path) -> Result<PathBuf> {
    let name = source.file_stem().context("a source without a name")?;
    let target = out.join(name).with_extension("bc");
    let status = Command::new(CLANG)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-emit-llvm", "-c"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
        .arg("-I")
        .arg(include)
        .arg("-isystem")
        .arg(libbpf)
        // Debian keeps asm/types.h in the build machine's own folder.
        .arg("-idirafter")
        .arg(format!("/usr/include/{}-linux-gnu", env::consts::ARCH))
        .arg(source)
        .arg("-o")
        .arg(&target)
        .status()
        .with_context(|| format!("starting {CLANG} (Debian package clang-22)"))?;
    if !status.success() {
        bail!("{CLANG} could not compile {}", source.display());
    }
    Ok(target)
}

/// Links the bitcode; every symbol that is not `static` in C stays visible, all else is inlined.
fn link(bitcode: &[PathBuf], object: &Path) -> Result<()> {
    let exports = exported_symbols(bitcode)?;
    let linker = Linker::new(LinkerOptions {
        target: None,
        cpu: Cpu::V3,
        cpu_features: CString::default(),
        optimize: OptLevel::Default,
        unroll_loops: false,
        ignore_inline_never: false,
        llvm_args: Vec::new(),
        // Expanding in order turns every memset into a call, and there is no libc to call.
        disable_expand_memcpy_in_order: true,
        disable_memory_builtins: true,
        btf: true,
        allow_bpf_trap: false,
    });
    linker
        .link_to_file(
            bitcode.iter().map(|path| LinkerInput::new_from_file(path)),
            object,
            OutputType::Object,
            exports.iter().map(String::as_str),
        )
        .context("linking the BPF object")
}

fn exported_symbols(bitcode: &[PathBuf]) -> Result<Vec<String>> {
    let output = Command::new(LLVM_NM)
        .args(["--defined-only", "--extern-only", "--format=just-symbols"])
        .args(bitcode)
        .output()
        .with_context(|| format!("starting {LLVM_NM} (Debian package llvm-22)"))?;
    if !output.status.success() {
        bail!("{LLVM_NM}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut symbols: Vec<String> = String::from_utf8(output.stdout)?
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.ends_with(':'))
        .map(str::to_owned)
        .collect();
    symbols.sort();
    symbols.dedup();
    Ok(symbols)
}
