//! The public items of `wattspan-client`, which Rust programs of others link, against the list in its folder.
//!
//! Each change of an item is a change of the list, in the same commit. Once the list's version is released, a line that is
//! removed or changed needs a version that Cargo does not take for compatible. The list is of declarations as they stand in
//! the source, which is formatted: public items with their derived traits, fields and variants with the attributes of serde.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::documented_commands::{files, read, root};

/// Attributes that callers or the wire see.
const KEPT_ATTRIBUTES: [&str; 3] = ["#[derive(", "#[non_exhaustive]", "#[serde("];

fn list_path() -> PathBuf {
    root().join("crates/wattspan-client/public-items.txt")
}

/// An item with its attributes, and the lines between its braces without their indentation.
struct Item {
    attributes: Vec<String>,
    /// Up to the brace or semicolon.
    header: String,
    body: Vec<String>,
}

/// The items of formatted source whose outermost lines have no indentation. Comments are left out.
fn items(source: &[String]) -> Vec<Item> {
    let (mut items, mut attributes) = (Vec::new(), Vec::new());
    let mut lines = source.iter().filter(|line| !line.trim_start().starts_with("//") && !line.is_empty());
    while let Some(line) = lines.next() {
        let mut text = line.clone();
        while !is_whole_head(&text) {
            let Some(next) = lines.next() else { break };
            text = format!("{text} {}", next.trim());
        }
        if text.starts_with('#') {
            attributes.push(text);
            continue;
        }
        let mut body = Vec::new();
        if text.ends_with('{') {
            for line in lines.by_ref() {
                if line.starts_with('}') {
                    break;
                }
                body.push(line.strip_prefix("    ").unwrap_or(line).to_owned());
            }
        }
        let header = text.trim_end_matches(['{', ';', ',']).trim_end().to_owned();
        items.push(Item { attributes: std::mem::take(&mut attributes), header, body });
    }
    items
}

/// Whether these first lines of an item reach its body, or its end.
fn is_whole_head(text: &str) -> bool {
    if text.starts_with('#') {
        return text.ends_with(']');
    }
    let count = |of: char| text.matches(of).count();
    let is_balanced = count('(') == count(')') && count('[') == count(']');
    // A comma ends a field or a variant, and stands within the head of the others.
    let is_member = !["fn ", "struct ", "enum ", "trait ", "impl"].iter().any(|word| text.contains(word));
    is_balanced && (text.ends_with(['{', ';', '}']) || is_member && text.ends_with(','))
}

/// A line for each public declaration of a module.
fn declarations(module: &str, source: &str) -> Vec<String> {
    let lines: Vec<String> = source.lines().map(str::to_owned).collect();
    let mut found = Vec::new();
    for item in items(&lines) {
        let is_test = item.attributes.iter().any(|attribute| attribute == "#[cfg(test)]");
        if is_test || item.header.starts_with("macro_rules!") {
            continue;
        }
        let is_public = item.header.starts_with("pub ");
        let type_name = || {
            let words = item
                .header
                .split([' ', '<', '('])
                .skip_while(|word| !matches!(*word, "struct" | "enum" | "trait"));
            words.skip(1).find(|word| !word.is_empty()).unwrap_or_default().to_owned()
        };
        let is_type =
            is_public && ["struct ", "enum ", "trait "].iter().any(|word| item.header.contains(word));
        if is_public || item.header.starts_with("impl") {
            found.push(format!("{module}: {}", declaration(&item)));
        }
        let members = items(&item.body);
        if is_type {
            let is_visible =
                |member: &&Item| !item.header.contains("struct ") || member.header.starts_with("pub ");
            let lines = members.iter().filter(is_visible).map(whole);
            found.extend(lines.map(|line| format!("{module}: {}.{line}", type_name())));
        } else if item.header.starts_with("impl") && !item.header.contains(" for ") {
            let public = members.iter().filter(|member| member.header.starts_with("pub "));
            let owner = item.header.trim_start_matches("impl").trim();
            found.extend(public.map(|member| format!("{module}: {owner}::{}", declaration(member))));
        } else if item.header.ends_with('!') {
            // The rows of a macro that declares items.
            found.extend(item.body.iter().map(|row| format!("{module}: {} {}", item.header, row.trim())));
        }
    }
    found
}

/// The attributes and the header without a body.
fn declaration(item: &Item) -> String {
    let kept =
        item.attributes.iter().filter(|text| KEPT_ATTRIBUTES.iter().any(|kept| text.starts_with(kept)));
    let header = match item.header.find(" { ") {
        Some(at) if item.header.contains("fn ") => &item.header[..at],
        _ => &item.header,
    };
    kept.map(String::as_str).chain([header]).collect::<Vec<_>>().join(" ")
}

/// The same with the body, such as the fields of a variant.
fn whole(item: &Item) -> String {
    let fields = item.body.iter().map(|line| line.trim()).filter(|line| !line.starts_with("//"));
    let fields: Vec<&str> = fields.collect();
    let body = if fields.is_empty() { String::new() } else { format!(" {{ {} }}", fields.join(" ")) };
    format!("{}{body}", declaration(item))
}

/// The names that a module's parent exports of it; `None` if the module itself is public.
fn exported_names(parent: &str, module: &str) -> Option<BTreeSet<String>> {
    if parent.lines().any(|line| line == format!("pub mod {module};")) {
        return None;
    }
    let prefix = format!("pub use {module}::");
    let uses = parent.split(';').filter_map(|item| Some(item.trim().split_once(&prefix)?.1));
    let words = uses.flat_map(|names| names.split([',', '{', '}', ' ', '\n']));
    Some(words.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Whether a declaration is one of a name, or of a member of it.
fn names_any(line: &str, names: &BTreeSet<String>) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| names.contains(word))
}

/// The version of the crate, and its items in order. Items of a private module count where its parent exports them.
fn current() -> (String, BTreeSet<String>) {
    let folder = root().join("crates/wattspan-client/src");
    let mut found = BTreeSet::new();
    for path in files("crates/wattspan-client/src", &["rs"]) {
        let path_of_module = path.strip_prefix(&folder).unwrap().with_extension("");
        let module = path_of_module.to_str().unwrap().replace('/', "::");
        let lines = declarations(module.trim_end_matches("::mod"), &read(&path));
        let exported = match module.rsplit_once("::") {
            Some((_, "mod")) => None,
            Some((parent, name)) => {
                let [file, directory] =
                    ["{}.rs", "{}/mod.rs"].map(|form| folder.join(form.replace("{}", parent)));
                exported_names(&read(if file.exists() { &file } else { &directory }), name)
            }
            None if module == "lib" => None,
            None => exported_names(&read(&folder.join("lib.rs")), &module),
        };
        found.extend(
            lines.into_iter().filter(|line| exported.as_ref().is_none_or(|names| names_any(line, names))),
        );
    }
    let manifest = read(&root().join("Cargo.toml"));
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap();
    (version.trim_end_matches('"').to_owned(), found)
}

/// The version of a list, whether it is released, and the items.
fn parse_list(text: &str) -> (String, bool, BTreeSet<String>) {
    let (first, items) = text.split_once('\n').expect("a first line");
    let head = first.strip_prefix("# wattspan-client ").expect("the name and the version");
    let (version, is_released) = match head.strip_suffix(" (not released)") {
        Some(version) => (version, false),
        None => (head, true),
    };
    (version.to_owned(), is_released, items.lines().map(str::to_owned).collect())
}

/// Whether Cargo takes `newer` for a compatible update of `older`: the first number that is not 0 is the same.
fn is_compatible(older: &str, newer: &str) -> bool {
    let breaking_part = |version: &str| -> Vec<String> {
        let numbers: Vec<&str> = version.split('.').collect();
        let length = numbers.iter().position(|number| *number != "0").map_or(numbers.len(), |at| at + 1);
        numbers[..length].iter().map(|number| (*number).to_owned()).collect()
    };
    breaking_part(older) == breaking_part(newer)
}

/// The lines of a released list that are gone although the version is compatible.
fn broken_lines<'a>(list: &'a str, version: &str, items: &BTreeSet<String>) -> Vec<&'a str> {
    let (listed_version, is_released, _) = parse_list(list);
    if !is_released || !is_compatible(&listed_version, version) {
        return Vec::new();
    }
    list.lines().skip(1).filter(|line| !items.contains(*line)).collect()
}

#[test]
fn the_public_items_of_the_client_are_those_of_the_list() {
    let (version, items) = current();
    let list = read(&list_path());
    let broken = broken_lines(&list, &version, &items);
    assert!(
        broken.is_empty(),
        "version {version} must keep these items; raise the version in Cargo.toml, and begin the list with \
         `# wattspan-client VERSION (not released)`:\n{}",
        broken.join("\n")
    );
    let first = list.lines().next().unwrap();
    let remark = if first.ends_with(')') { " (not released)" } else { "" };
    let text =
        items.iter().fold(format!("# wattspan-client {version}{remark}\n"), |text, item| text + item + "\n");
    if std::env::var_os("WATTSPAN_WRITE_PUBLIC_ITEMS").is_some() {
        fs::write(list_path(), &text).unwrap();
        return;
    }
    let (_, _, listed) = parse_list(&list);
    let added: Vec<_> = items.difference(&listed).map(|line| format!("+ {line}")).collect();
    let removed: Vec<_> = listed.difference(&items).map(|line| format!("- {line}")).collect();
    assert!(
        list == text,
        "crates/wattspan-client/public-items.txt differs from the source; if each change is intended, run \
         WATTSPAN_WRITE_PUBLIC_ITEMS=1 cargo test --test packaging public_items::\n{}\n{}",
        removed.join("\n"),
        added.join("\n")
    );
}

#[test]
fn each_kind_of_change_changes_the_list() {
    let source = "/// A span.\n#[derive(Debug, Clone)]\n#[cfg_attr(a, b)]\npub struct Span {\n    /// Its name.\n    \
                  #[serde(default)]\n    pub name: String,\n    hidden: u64,\n}\n\npub enum State {\n    Open,\n    Lost { since_ns: \
                  u64 },\n    Kept {\n        /// When.\n        at_ns: u64,\n    },\n}\n\nimpl Span {\n    /// Closes it.\n    pub fn \
                  close(\n        self,\n        at_ns: u64,\n    ) -> u64 {\n        at_ns\n    }\n\n    fn private(&self) {\n        \
                  ();\n    }\n}\n\nimpl Drop for Span {\n    fn drop(&mut self) {}\n}\n\npub const MAX: u64 = 3;\n\nfn inner() \
                  {}\n\nmethods! {\n    Open = \"open\";\n}\n\n#[cfg(test)]\nmod tests {\n    pub fn helper() {}\n}\n";
    let found = declarations("m", source);
    assert_eq!(
        found,
        [
            "m: #[derive(Debug, Clone)] pub struct Span",
            "m: Span.#[serde(default)] pub name: String",
            "m: pub enum State",
            "m: State.Open",
            "m: State.Lost { since_ns: u64 }",
            "m: State.Kept { at_ns: u64, }",
            "m: impl Span",
            "m: Span::pub fn close( self, at_ns: u64, ) -> u64",
            "m: impl Drop for Span",
            "m: pub const MAX: u64 = 3",
            "m: methods! Open = \"open\";",
        ]
    );
}

#[test]
fn a_private_module_has_the_items_that_are_exported() {
    let parent =
        "pub mod account;\nmod inner;\nmod other;\npub use inner::{Client, MAX};\npub use other::Error;\n";
    assert_eq!(exported_names(parent, "account"), None);
    let names = exported_names(parent, "inner").unwrap();
    assert_eq!(names, BTreeSet::from(["Client".to_owned(), "MAX".to_owned()]));
    assert_eq!(exported_names(parent, "other").unwrap().len(), 1);
    assert_eq!(exported_names(parent, "third"), Some(BTreeSet::new()));
    assert!(
        names_any("inner: Client::pub fn connect()", &names)
            && !names_any("inner: pub struct Clients", &names)
    );
}

#[test]
fn a_removed_item_needs_an_incompatible_version() {
    let items = BTreeSet::from(["m: pub fn a()".to_owned(), "m: pub fn c()".to_owned()]);
    let list = |head: &str| format!("# wattspan-client {head}\nm: pub fn a()\nm: pub fn b()\n");
    for (head, version, is_broken) in [
        ("0.1.0", "0.1.0", true),
        ("0.1.0", "0.1.7", true),
        ("0.1.0", "0.2.0", false),
        ("1.2.0", "1.3.0", true),
        ("1.2.0", "2.0.0", false),
        ("0.0.1", "0.0.2", false),
        ("0.1.0 (not released)", "0.1.0", false),
    ] {
        let list = list(head);
        let expected: &[&str] = if is_broken { &["m: pub fn b()"] } else { &[] };
        assert_eq!(broken_lines(&list, version, &items), expected, "{head} to {version}");
    }
}

#[test]
fn the_list_has_the_items_that_servers_use() {
    let (_, _, listed) = parse_list(&read(&list_path()));
    assert!(listed.len() > 200, "{} items", listed.len());
    for item in [
        "daemon_client: Client::pub fn connect(socket_path: &SocketPath) -> Result<Self, ClientError>",
        "account: SpanState.Open",
    ] {
        assert!(listed.contains(item), "{item}");
    }
}
