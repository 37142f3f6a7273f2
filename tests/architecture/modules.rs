//! The modules of all crates as a graph of files, with an edge from each file to those whose items it names.
//!
//! Invariant: an edge represents a path in code outside tests. A path through a re-export (`pub use`) leads to the file
//! that defines the item, so that a directory's `mod.rs` has no edges for what it only re-exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// A module path with its crate, such as `["wattspan", "server", "acceptor"]`.
type ModulePath = Vec<String>;

/// A source file with its syntax tree, tests removed.
pub struct SourceFile {
    /// Path relative to the repository's root.
    pub path: String,
    pub syntax: syn::File,
    module: ModulePath,
}

/// Every source file of every crate.
pub struct Modules {
    /// Sorted by path.
    pub files: Vec<SourceFile>,
    by_module: BTreeMap<ModulePath, usize>,
}

impl Modules {
    /// Reads and parses every source file of the crates below `root`.
    pub fn read(root: &Path) -> Self {
        let mut files = Vec::new();
        let mut by_module = BTreeMap::new();
        for (name, src) in crates(root) {
            let mut paths = Vec::new();
            list(&src, &mut paths);
            paths.sort();
            for path in paths {
                let text = fs::read_to_string(&path).expect("readable");
                let mut syntax =
                    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                syntax.items.retain(|item| !is_test(item));
                let module = module_path(&name, path.strip_prefix(&src).expect("below src"));
                // A stub for other platforms (`#[path]`) has its own path here; no import leads to it.
                by_module.insert(module.clone(), files.len());
                let relative = path.strip_prefix(root).expect("below the root");
                files.push(SourceFile { path: relative.display().to_string(), syntax, module });
            }
        }
        Self { files, by_module }
    }

    /// For each file, by index, the other files that it names.
    pub fn edges(&self) -> Vec<BTreeSet<usize>> {
        let edges_of = |(at, file): (usize, &SourceFile)| {
            let mut paths = Paths { found: Vec::new() };
            paths.visit_file(&file.syntax);
            let resolved = paths.found.iter().filter_map(|path| self.resolve(&file.module, path));
            resolved.filter(|to| *to != at).collect()
        };
        self.files.iter().enumerate().map(edges_of).collect()
    }

    /// The file that defines what `path` names, seen from the module `from`; `None` outside these crates.
    fn resolve(&self, from: &ModulePath, path: &[String]) -> Option<usize> {
        let (mut module, rest) = match path.first()?.as_str() {
            "crate" => (from[..1].to_vec(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => {
                let ups = path.iter().take_while(|segment| *segment == "super").count();
                (from[..from.len().checked_sub(ups)?].to_vec(), &path[ups..])
            }
            // A child module named without `self::`; an imported name counts where it was imported.
            first if self.is_child(from, first) => (from.clone(), path),
            first if self.by_module.contains_key(&vec![first.to_owned()]) => {
                (vec![first.to_owned()], &path[1..])
            }
            _ => return None,
        };
        let mut rest = rest;
        while let Some(next) = rest.first() {
            let mut deeper = module.clone();
            deeper.push(next.clone());
            if !self.by_module.contains_key(&deeper) {
                break;
            }
            (module, rest) = (deeper, &rest[1..]);
        }
        let file = *self.by_module.get(&module)?;
        match rest.first() {
            Some(name) => Some(self.through_reexport(file, name, 0).unwrap_or(file)),
            None => Some(file),
        }
    }

    fn is_child(&self, of: &ModulePath, name: &str) -> bool {
        let mut child = of.clone();
        child.push(name.to_owned());
        self.by_module.contains_key(&child)
    }

    /// If `file` re-exports `name` from another file, that file.
    fn through_reexport(&self, file: usize, name: &str, depth: usize) -> Option<usize> {
        let of = &self.files[file];
        for item in &of.syntax.items {
            let syn::Item::Use(item) = item else { continue };
            if matches!(item.vis, syn::Visibility::Inherited) {
                continue;
            }
            let mut leaves = Vec::new();
            flatten(&item.tree, &mut Vec::new(), &mut leaves);
            for (path, visible_as) in leaves {
                if visible_as == name && depth < 4 {
                    return self.resolve(&of.module, &path).filter(|to| *to != file);
                }
            }
        }
        None
    }
}

/// The strongly connected components of more than one file, each sorted by path.
pub fn circles(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reach = |from: usize| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for to in &edges[at] {
                if seen.insert(*to) {
                    open.push(*to);
                }
            }
        }
        seen
    };
    let reached: Vec<BTreeSet<usize>> = (0..edges.len()).map(reach).collect();
    let mut found: Vec<Vec<usize>> = Vec::new();
    for at in 0..edges.len() {
        if reached[at].contains(&at) && !found.iter().any(|circle| circle.contains(&at)) {
            found.push(
                (0..edges.len())
                    .filter(|to| reached[at].contains(to) && reached[*to].contains(&at))
                    .collect(),
            );
        }
    }
    found
}

/// The paths that code names, imports included.
struct Paths {
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // A re-export is not a use by the module itself.
        if matches!(item.vis, syn::Visibility::Inherited) {
            let mut leaves = Vec::new();
            flatten(&item.tree, &mut Vec::new(), &mut leaves);
            self.found.extend(leaves.into_iter().map(|(path, _)| path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.found.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !has_test_cfg(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

/// Each leaf of an import with its whole path and the name under which it is visible.
fn flatten(tree: &syn::UseTree, before: &mut Vec<String>, into: &mut Vec<(Vec<String>, String)>) {
    let mut leaf = |name: &syn::Ident, visible_as: &syn::Ident| {
        let mut path = before.clone();
        // `use a::{self}` names `a`.
        if name != "self" {
            path.push(name.to_string());
        }
        into.push((path, visible_as.to_string()));
    };
    match tree {
        syn::UseTree::Name(name) => leaf(&name.ident, &name.ident),
        syn::UseTree::Rename(rename) => leaf(&rename.ident, &rename.rename),
        syn::UseTree::Glob(_) => into.push((before.clone(), "*".into())),
        syn::UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, into)),
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, into);
            before.pop();
        }
    }
}

/// The name of each crate, as code writes it, with its `src/`; the root's comes first.
pub fn crates(root: &Path) -> Vec<(String, PathBuf)> {
    let mut members: Vec<_> = fs::read_dir(root.join("crates"))
        .expect("the folder of crates")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().replace('-', "_"), entry.path().join("src")))
        .collect();
    members.sort();
    members.insert(0, ("wattspan".to_owned(), root.join("src")));
    members
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && path.file_name().is_some_and(|name| name != "tests.rs")
        {
            into.push(path);
        }
    }
}

fn module_path(of_crate: &str, relative: &Path) -> ModulePath {
    let inside = relative.with_extension("");
    let mut parts = vec![of_crate.to_owned()];
    parts.extend(inside.iter().map(|part| part.to_string_lossy().into_owned()));
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

fn is_test(item: &syn::Item) -> bool {
    matches!(item, syn::Item::Mod(module) if has_test_cfg(&module.attrs))
}

/// Whether an attribute is `cfg(test)` or `cfg(all(test, ..))`.
fn has_test_cfg(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Meta>().is_ok_and(|condition| requires_test(&condition))
    })
}

fn requires_test(condition: &syn::Meta) -> bool {
    type Conditions = syn::punctuated::Punctuated<syn::Meta, syn::Token![,]>;
    match condition {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(Conditions::parse_terminated)
            .is_ok_and(|conditions| conditions.iter().any(requires_test)),
        _ => false,
    }
}
