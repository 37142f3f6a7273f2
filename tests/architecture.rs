//! The architecture as tests: modules import only from those before them in the pipeline, every file states what it
//! owns, and the project's rules that the compiler does not check hold.

#[path = "architecture/allowed.rs"]
mod allowed;
#[path = "architecture/modules.rs"]
mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use allowed::Allowed;
use modules::Modules;

/// Each module with all modules that it may import, in the order of the pipeline: the modules of the root package by
/// their names, those of the wire types as `client::NAME`, every other crate as one.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("client::domain", &[]),
    ("client::clock", &[]),
    ("client::account", &["client::domain"]),
    ("client::protocol", &["client::domain", "client::account"]),
    ("client", &["client::domain", "client::clock", "client::account", "client::protocol"]),
    ("system", &[]),
    ("http", &[]),
    ("page", &[]),
    ("domain", &["client::domain"]),
    ("clock", &["client::clock"]),
    ("systemd", &["clock", "system"]),
    ("launchd", &[]),
    ("privileges", &["client::protocol"]),
    ("sources", &["domain", "clock"]),
    ("ring", &["domain"]),
    ("sampler", &["domain", "clock", "sources", "ring"]),
    ("attribution", &["domain", "client::account"]),
    ("store", &["domain", "clock", "attribution", "client::account", "client::protocol"]),
    ("process_usage", &["clock"]),
    ("config", &["domain", "privileges", "sources", "sampler", "attribution", "client", "client::protocol"]),
    (
        "service",
        &[
            "domain",
            "clock",
            "systemd",
            "privileges",
            "config",
            "sources",
            "ring",
            "sampler",
            "attribution",
            "store",
            "process_usage",
            "client::account",
            "client::protocol",
            "system",
        ],
    ),
    (
        "server",
        &[
            "domain",
            "clock",
            "store",
            "attribution",
            "config",
            "privileges",
            "process_usage",
            "service",
            "systemd",
            "client::account",
            "client::protocol",
            "system",
        ],
    ),
    ("dbus", &["config", "service", "server", "client::protocol", "system"]),
    ("dbus_unsupported", &["config", "server"]),
    (
        "daemon",
        &[
            "domain",
            "clock",
            "systemd",
            "launchd",
            "privileges",
            "config",
            "sources",
            "ring",
            "sampler",
            "attribution",
            "store",
            "service",
            "server",
            "dbus",
            "client::protocol",
            "system",
        ],
    ),
    (
        "embedded",
        &[
            "domain",
            "clock",
            "config",
            "sources",
            "sampler",
            "attribution",
            "service",
            "server",
            "client",
            "client::account",
            "client::protocol",
        ],
    ),
    (
        "proxy",
        &[
            "client",
            "client::domain",
            "client::clock",
            "client::account",
            "client::protocol",
            "system",
            "http",
        ],
    ),
    ("columnar", &[]),
    (
        "ipw",
        &[
            "columnar",
            "client",
            "client::domain",
            "client::clock",
            "client::account",
            "client::protocol",
            "system",
            "http",
            "page",
        ],
    ),
    (
        "export",
        &[
            "client",
            "client::domain",
            "client::clock",
            "client::account",
            "client::protocol",
            "system",
            "http",
        ],
    ),
    (
        "cli",
        &[
            "export",
            "client",
            "client::domain",
            "client::clock",
            "client::account",
            "client::protocol",
            "system",
            "http",
            "page",
            "privileges",
            "config",
            "embedded",
            "proxy",
            "ipw",
        ],
    ),
];

/// File names that do not describe their content.
const BANNED_NAMES: &[&str] = &[
    "util", "utils", "common", "helper", "helpers", "misc", "core", "types", "error", "errors", "manager",
    "base", "prelude",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source files of all crates.
fn sources() -> Vec<PathBuf> {
    modules::crates(root()).iter().flat_map(|(_, src)| rust_files(src)).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the folder is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                into.push(path);
            }
        }
    }
    let mut list = Vec::new();
    walk(folder, &mut list);
    list.sort();
    assert!(!list.is_empty(), "{} has no source files", folder.display());
    list
}

/// The path of a file relative to the root.
fn relative(path: &Path) -> &Path {
    path.strip_prefix(root()).expect("below the root")
}

/// The modules of the client's crate that have their own rows in [`MAY_IMPORT`].
const WIRE_MODULES: &[&str] = &["domain", "clock", "account", "protocol"];

/// The row of [`MAY_IMPORT`] for the module `name` of a crate.
fn row(of_crate: &str, name: &str) -> String {
    match of_crate.strip_prefix("wattspan_") {
        None => name.to_owned(),
        Some("client") if WIRE_MODULES.contains(&name) => format!("client::{name}"),
        Some(other) => other.to_owned(),
    }
}

/// The crate of a file, and the row of its module; `None` for lib.rs and the programs of the root package.
fn module(path: &Path) -> Option<(String, String)> {
    let crates = modules::crates(root());
    let (of_crate, src) = crates.into_iter().find(|(_, src)| path.starts_with(src))?;
    let inside = path.strip_prefix(src).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    let is_root = of_crate == "wattspan" && (first == "lib" || first == "bin");
    let row = row(&of_crate, &first);
    (!is_root).then_some((of_crate, row))
}

/// The lines of a file that are code, without its tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .map(|line| line.split("//").next().unwrap_or(""))
}

/// The rows of [`MAY_IMPORT`] that a line of the crate `from` names, also within braces.
fn imports(from: &str, line: &str) -> Vec<String> {
    let names =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    let (mut rest, mut before) = (line, ' ');
    while let Some(at) = rest.find("crate::").into_iter().chain(rest.find("wattspan")).min() {
        before = rest[..at].chars().next_back().unwrap_or(before);
        let of_crate = names(&rest[at..]);
        rest = &rest[at + of_crate.len()..];
        let Some(path) = rest.strip_prefix("::").filter(|_| before != '$' && before != '"') else { continue };
        let of_crate = if of_crate == "crate" { from } else { &of_crate };
        match path.strip_prefix('{') {
            Some(list) => {
                let items = list.split(',').map(|item| names(item.trim())).filter(|name| !name.is_empty());
                found.extend(items.map(|name| row(of_crate, &name)));
            }
            None => found.push(row(of_crate, &names(path))),
        }
    }
    found
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for path in sources() {
        let Some((of_crate, module)) = module(&path) else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!(
                "{}: module {module} has no place in the pipeline; give it one here",
                path.display()
            ));
            continue;
        };
        let text = fs::read_to_string(&path).expect("readable");
        for line in code(&text) {
            for import in imports(&of_crate, line) {
                if import != module && !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{}: {module} imports {import}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the arrows:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_of_imports_has_no_cycle() {
    for (place, (module, allowed)) in MAY_IMPORT.iter().enumerate() {
        for name in *allowed {
            let before = MAY_IMPORT.iter().position(|(other, _)| other == name);
            assert!(
                before.is_some_and(|before| before < place),
                "{module} may import {name}, which comes after it"
            );
        }
    }
}

#[test]
fn no_module_has_a_banned_name() {
    for path in sources() {
        for part in relative(&path).components() {
            let name = part.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
            assert!(
                !BANNED_NAMES.contains(&name.as_str()),
                "{}: the name {name} says nothing",
                path.display()
            );
        }
    }
}

#[test]
fn every_file_starts_with_a_module_comment() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.starts_with("//!"), "{}: does not open with what it owns (//!)", path.display());
    }
}

#[test]
fn unsafe_stays_in_the_ffi_files_and_cfg_on_mod_and_use_lines() {
    let mut wrong = Vec::new();
    for path in sources() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
        if name == "tests.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<&str> = code(&text).collect();
        for (number, line) in lines.iter().enumerate() {
            let says_unsafe = line.contains("unsafe ") || line.contains("allow(unsafe_code");
            if says_unsafe && !name.ends_with("_ffi.rs") {
                wrong.push(format!("{}:{}: unsafe outside an *_ffi.rs file", path.display(), number + 1));
            }
            if line.trim_start().starts_with("#[cfg(") {
                let next =
                    lines[number + 1..].iter().map(|line| line.trim()).find(|line| !line.starts_with("#["));
                let rest = next.unwrap_or_default();
                let visible = match rest.strip_prefix("pub(") {
                    Some(scoped) => scoped.split_once(") ").map_or(rest, |(_, item)| item),
                    None => rest.trim_start_matches("pub "),
                };
                if !visible.starts_with("mod ") && !visible.starts_with("use ") {
                    wrong.push(format!(
                        "{}:{}: cfg on something that is no mod or use",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_has_a_todo_marker() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("readable");
        for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"] {
            assert!(!text.contains(mark), "{}: says {mark}", path.display());
        }
    }
}

/// The files that may create files directly, each with the reason.
const FILE_CREATORS: &[(&str, &str)] = &[
    ("crates/wattspan-system/src/private_file.rs", "the one place for it"),
    ("crates/wattspan-cli/src/generate.rs", "manual pages are readable by all users"),
    ("src/store/state_dir.rs", "the state directory, checked and locked before anything is written"),
    ("crates/wattspan-system/src/unix_socket/listener.rs", "the socket's directory, which every user enters"),
];

/// Whether a line of code can create a file or a directory.
fn creates_a_file(line: &str) -> bool {
    let calls = [
        "File::create",
        "File::options",
        "OpenOptions",
        "fs::write(",
        "fs::copy(",
        "fs::create_dir",
        "DirBuilder",
        "OFlags::CREATE",
        "create_new(",
    ];
    calls.iter().any(|call| line.contains(call))
}

#[test]
fn files_are_created_in_one_place() {
    for path in sources() {
        let name = relative(&path).display().to_string();
        if name.ends_with("tests.rs") || FILE_CREATORS.iter().any(|(file, _)| *file == name) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        let made = code(&text).find(|line| creates_a_file(line));
        assert!(made.is_none(), "{name} creates a file without private_file: {}", made.unwrap_or_default());
    }
    assert!(creates_a_file("    std::fs::write(file, bytes)"));
}

/// The files of the command line that write to standard streams: one makes control characters visible, the other
/// prints the progress line of a run, which holds only figures.
const STREAM_WRITERS: &[&str] =
    &["crates/wattspan-cli/src/output.rs", "crates/wattspan-cli/src/ipw/progress_line.rs"];

/// Whether a line may write to a standard stream; a query of the stream's capabilities does not count.
fn writes_on_a_stream(line: &str) -> bool {
    let rest = line.replace("of(&stdout())", "").replace("of(&stderr())", "");
    ["stdout()", "stderr()", "print!(", "println!("].iter().any(|part| rest.contains(part))
}

#[test]
fn the_command_line_writes_in_one_place_which_shows_hidden_characters() {
    for path in sources() {
        let file = relative(&path).to_string_lossy().into_owned();
        if !file.starts_with("crates/wattspan-cli/") || STREAM_WRITERS.contains(&file.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        for line in code(&text) {
            assert!(!writes_on_a_stream(line), "{file}: writes past output.rs: {line}");
        }
    }
    assert!(
        writes_on_a_stream("writeln!(stdout(), \"{name}\")") && writes_on_a_stream("eprintln!(\"{name}\")")
    );
    assert!(!writes_on_a_stream("Terminal::of(&stdout())"));
}

#[test]
fn the_check_of_imports_can_fail() {
    assert_eq!(imports("wattspan", "use crate::service::Service;"), ["service"]);
    assert_eq!(imports("wattspan", "use crate::{energy::Domain, ipc};"), ["energy", "ipc"]);
    assert_eq!(imports("wattspan", "use wattspan_client::protocol::Call;"), ["client::protocol"]);
    assert_eq!(
        imports("wattspan_client", "fn f(of: crate::account::A, to: crate::B)"),
        ["client::account", "client"]
    );
    assert_eq!(imports("wattspan_cli", "use wattspan::config::{Config, Flags};"), ["config"]);
    assert_eq!(imports("wattspan_cli", "wattspan_ipw::run::run(wattspan_http::BoxBody)"), ["ipw", "http"]);
    assert!(imports("wattspan", "use super::clock;").is_empty());
}

/// A test that prints its own skip message would pass in CI, where [`tests/support/skip.rs`] makes skipping fail.
#[test]
fn only_the_function_that_fails_in_ci_skips_a_test() {
    let files = rust_files(&root().join("tests"));
    assert!(files.iter().any(|file| file.ends_with("support/skip.rs")), "{files:?}");
    for file in files.iter().filter(|file| !file.ends_with("support/skip.rs")) {
        let text = fs::read_to_string(file).unwrap().to_lowercase();
        assert!(!text.contains("println!(\"skip"), "{} skips by itself", file.display());
    }
}

fn modules() -> Modules {
    Modules::read(root())
}

/// Files that import each other cannot be read, tested or moved separately.
#[test]
fn files_import_each_other_in_no_circle() {
    let modules = modules();
    let circles = modules::circles(&modules.edges());
    let named = circles.iter().map(|circle| {
        circle.iter().map(|file| modules.files[*file].path.as_str()).collect::<Vec<_>>().join(" ")
    });
    Allowed::read("circles").check(named.collect(), "files that import each other in a circle");
}

/// The methods of a type are in one file, or two at most.
#[test]
fn a_type_has_its_methods_in_two_files_at_most() {
    let modules = modules();
    let mut files_of: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
    for file in &modules.files {
        // A type's name is unique only within its module, so the module is part of the key.
        let module = module(&root().join(&file.path)).unwrap_or_default().1;
        for item in &file.syntax.items {
            let syn::Item::Impl(item) = item else { continue };
            let syn::Type::Path(of) = &*item.self_ty else { continue };
            let (None, Some(name)) = (&item.trait_, of.path.segments.last()) else { continue };
            files_of.entry((module.clone(), name.ident.to_string())).or_default().insert(&file.path);
        }
    }
    let wide = files_of.into_iter().filter(|(_, files)| files.len() > 2);
    let named =
        wide.map(|((_, name), files)| format!("{name}: {}", files.into_iter().collect::<Vec<_>>().join(" ")));
    Allowed::read("wide_types").check(named.collect(), "types with methods in more than two files");
}

#[test]
fn error_types_end_in_error() {
    let modules = modules();
    let mut named = BTreeSet::new();
    for file in &modules.files {
        for item in &file.syntax.items {
            let (name, attributes) = match item {
                syn::Item::Enum(item) => (&item.ident, &item.attrs),
                syn::Item::Struct(item) => (&item.ident, &item.attrs),
                _ => continue,
            };
            let derives_error = attributes.iter().any(|attribute| match &attribute.meta {
                syn::Meta::List(list) if list.path.is_ident("derive") => list
                    .parse_args_with(
                        syn::punctuated::Punctuated::<syn::Path, syn::Token![,]>::parse_terminated,
                    )
                    .is_ok_and(|paths| {
                        paths
                            .iter()
                            .any(|path| path.segments.last().is_some_and(|last| last.ident == "Error"))
                    }),
                _ => false,
            });
            if derives_error && !name.to_string().ends_with("Error") {
                named.insert(format!("{name}: {}", file.path));
            }
        }
    }
    Allowed::read("error_names").check(named, "error types whose name does not end in Error");
}

/// A platform stub is code for every platform but some (`cfg(not(…))`) that replaces another module, or code in a
/// file of another name. Foreign functions are not stubs.
#[test]
fn platform_stubs_end_in_unsupported() {
    let modules = modules();
    let (mut named, mut stubs) = (BTreeSet::new(), 0);
    for file in &modules.files {
        for item in &file.syntax.items {
            let syn::Item::Mod(item) = item else { continue };
            let path = item.attrs.iter().find_map(|attribute| match &attribute.meta {
                syn::Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
                    syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
                    _ => None,
                },
                _ => None,
            });
            let cfg = item.attrs.iter().find(|attribute| attribute.path().is_ident("cfg"));
            // Code for every platform but macOS is the Linux implementation, not a stub.
            let is_negated = cfg.and_then(|cfg| cfg.parse_args::<syn::Meta>().ok()).is_some_and(|meta| {
                let of_linux =
                    meta.require_list().is_ok_and(|list| list.tokens.to_string().contains("macos"));
                meta.path().is_ident("not") && !of_linux
            });
            let name = path.clone().unwrap_or_else(|| format!("{}.rs", item.ident));
            if cfg.is_none() || !(is_negated || path.is_some()) || name.ends_with("_ffi.rs") {
                continue;
            }
            stubs += 1;
            if !name.ends_with("_unsupported.rs") {
                named.insert(format!("{}: {name}", file.path));
            }
        }
    }
    assert!(stubs > 5, "the stubs were not found");
    Allowed::read("stubs").check(named, "platform stubs whose name does not end in _unsupported");
}

/// Names and phrases of the project's former private language (tests/architecture/retired.txt).
#[test]
fn retired_names_do_not_come_back() {
    let root = root();
    let list = fs::read_to_string(root.join("tests/architecture/retired.txt")).expect("the list of names");
    let retired: Vec<&str> = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(retired.len() > 40, "the list of retired names is cut short");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for path in texts(root) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for name in &retired {
            *counts.entry(name).or_default() += occurrences(&text, name);
        }
    }
    let named = counts.into_iter().filter(|(_, count)| *count > 0);
    let named = named.map(|(name, count)| format!("{name}: {count}")).collect();
    Allowed::read("retired_uses").check_counts(named, "names that vocabulary and writing rules retired");
}

/// A doc comment that has no word beyond the name of its item. Help texts of options, which have no full stop, are exempt.
#[test]
fn no_doc_comment_only_repeats_the_name() {
    let repeats = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("readable");
        let found = repeating_docs(&text).into_iter();
        found.map(|line| format!("{}: {line}", relative(path).display())).collect::<Vec<_>>()
    };
    let found: Vec<String> = sources().iter().flat_map(repeats).collect();
    assert!(found.is_empty(), "say more, or delete them:\n{}", found.join("\n"));
    let text = "/// The open spans.\n#[derive(Debug)]\npub struct OpenSpan {\n    /// In nanoseconds.\n    at_ns: u64,\n";
    assert_eq!(repeating_docs(text), ["The open spans."]);
    assert_eq!(
        repeating_docs("    /// Closes a span.\n    pub fn close_span(&mut self) {"),
        ["Closes a span."]
    );
    assert!(
        repeating_docs("/// Closes a span,\n/// which fails if it is closed.\nfn close_span() {").is_empty()
    );
}

/// The doc comments of one line in `text` whose words are all in the name of the item.
fn repeating_docs(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_doc = |at: usize| lines.get(at).is_some_and(|line| line.starts_with("///"));
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(doc) = line.strip_prefix("/// ").filter(|doc| doc.ends_with('.')) else { continue };
        if is_doc(at + 1) || at > 0 && is_doc(at - 1) {
            continue;
        }
        let item = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        let item =
            item.map_or("", |item| item.split(['(', '{', ':', '=', ';', '<', ',']).next().unwrap_or(""));
        let name = words(item.split_whitespace().last().unwrap_or(""));
        if words(doc).iter().all(|word| name.contains(word)) {
            found.push(doc);
        }
    }
    found
}

/// The words of a text or of a name in lower case, without articles and without the `s` of a plural or of a verb.
fn words(text: &str) -> BTreeSet<String> {
    let mut spaced = String::new();
    for letter in text.chars() {
        if letter.is_uppercase() && spaced.chars().next_back().is_some_and(char::is_lowercase) {
            spaced.push(' ');
        }
        spaced.push(if letter.is_alphanumeric() { letter } else { ' ' });
    }
    let words = spaced.split_whitespace().map(str::to_lowercase);
    let words = words.filter(|word| !["a", "an", "the", "of", "its"].contains(&word.as_str()));
    words.map(|word| word.strip_suffix('s').map_or(word.clone(), str::to_owned)).collect()
}

/// Occurrences of `name` in `text` as whole words.
fn occurrences(text: &str, name: &str) -> usize {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = |at: &usize| {
        !is_word(text[..*at].chars().next_back()) && !is_word(text[*at + name.len()..].chars().next())
    };
    text.match_indices(name).map(|(at, _)| at).filter(alone).count()
}

/// The source files and documents that are checked.
fn texts(root: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, into);
            } else if path
                .extension()
                .is_some_and(|ending| ["rs", "md", "py", "varlink"].iter().any(|e| ending == *e))
            {
                into.push(path);
            }
        }
    }
    let mut list = vec![root.join("README.md")];
    for folder in ["src", "crates", "docs", "clients/python/src", "examples", "benches"] {
        walk(&root.join(folder), &mut list);
    }
    list.sort();
    list
}

#[test]
fn the_check_of_circles_can_fail() {
    let edges = |of: &[(usize, usize)]| {
        let mut edges = vec![BTreeSet::new(); 5];
        of.iter().for_each(|(from, to)| {
            edges[*from].insert(*to);
        });
        edges
    };
    assert_eq!(modules::circles(&edges(&[(0, 1), (1, 2), (2, 0), (3, 0)])), [vec![0, 1, 2]]);
    assert!(modules::circles(&edges(&[(0, 1), (1, 2), (0, 2), (3, 4)])).is_empty());
    assert_eq!(occurrences("Fate fate Fates a_Fate (Fate)", "Fate"), 2);
}

/// Standard terms, each with the file that owns the subject: a search for the term must lead there.
const TERMS: &[(&str, &str)] = &[
    ("virtual time", "src/attribution/virtual_energy.rs"),
    ("rate limit", "src/service/rate_limit.rs"),
    ("peer credentials", "crates/wattspan-system/src/unix_socket/peer_credentials.rs"),
    ("bootstrap", "crates/wattspan-ipw/src/bootstrap.rs"),
    ("reverse proxy", "crates/wattspan-proxy/src/lib.rs"),
    ("retry", "crates/wattspan-ipw/src/query.rs"),
    ("timeout", "crates/wattspan-http/src/connection_pool.rs"),
    ("subscription", "src/server/subscriptions.rs"),
    ("checkpoint", "src/store/writer_thread.rs"),
];

#[test]
fn standard_terms_are_found_in_the_files_that_own_them() {
    let root = root();
    let missing: Vec<_> = TERMS
        .iter()
        .filter(|(term, file)| {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default().to_lowercase();
            !text.lines().any(|line| line.contains(term))
        })
        .collect();
    assert!(missing.is_empty(), "terms that their files do not contain: {missing:#?}");
}

/// The files of the numbered list under `heading` in ARCHITECTURE.md.
fn listed_files(document: &str, heading: &str) -> Vec<String> {
    let (_, section) = document.split_once(&format!("## {heading}\n")).expect("the heading");
    let section = section.split("\n## ").next().expect("a section");
    let file = |line: &str| {
        let (number, rest) = line.split_once(". `")?;
        number.parse::<u32>().ok()?;
        Some(rest.split_once('`')?.0.to_owned())
    };
    section.lines().filter_map(file).collect()
}

/// Most files that a reader may have to open to follow one CloseSpan to its settled account.
const MAX_CLOSE_SPAN_FILES: usize = 25;

#[test]
fn the_path_of_one_close_span_is_as_documented() {
    let root = root();
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let listed = listed_files(&document, "The path of one CloseSpan");
    assert!((10..=MAX_CLOSE_SPAN_FILES).contains(&listed.len()), "{} files: {listed:#?}", listed.len());
    let modules = Modules::read(root);
    let edges = modules.edges();
    let at: Vec<usize> = listed
        .iter()
        .map(|path| {
            let found = modules.files.iter().position(|file| file.path == *path);
            found.unwrap_or_else(|| panic!("ARCHITECTURE.md lists {path}, which does not exist"))
        })
        .collect();
    for (index, file) in at.iter().enumerate().skip(1) {
        assert!(!at[..index].contains(file), "{} is listed twice", listed[index]);
        // A second file of a type's methods imports the type; nothing names that file.
        let is_linked = |earlier: &usize| edges[*earlier].contains(file) || edges[*file].contains(earlier);
        let is_reached = at[..index].iter().any(is_linked);
        assert!(is_reached, "no import links {} with a file listed before it", listed[index]);
    }
}

#[test]
fn the_check_of_the_documented_path_can_fail() {
    let document = "## Other\n1. `src/a.rs`: x\n## Path\n1. `src/b.rs`: y\ntext `src/c.rs`\n2. `src/d/e.rs`: z\n\n## Next\n3. `src/f.rs`\n";
    assert_eq!(listed_files(document, "Path"), ["src/b.rs", "src/d/e.rs"]);
}
