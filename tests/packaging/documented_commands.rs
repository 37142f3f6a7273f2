//! Everything that messages, help and documents advise exists: each flag and subcommand, in the program with which it
//! is named; each group, feature and drop-in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, Command, CommandFactory};

/// Flags of other programs that the texts name.
const FOREIGN_FLAGS: &[(&str, &str)] = &[
    ("cap-add", "docker, podman"),
    ("drive", "examples/fastapi_energy.py"),
    ("features", "cargo"),
    ("log", "lm_eval: --log_samples"),
    ("middleware", "vllm"),
    ("no-default-features", "cargo"),
    ("output", "lm_eval: --output_path"),
    ("path", "cargo"),
    ("samplers", "powermetrics"),
    ("served-model-name", "vllm"),
    ("system", "groupadd"),
];

/// Modules whose messages only the daemon prints, and those whose messages only `wattspan` prints. Both programs print
/// the messages of the other modules, so a flag there must be named together with its program.
const DAEMON_MODULES: &[&str] = &["daemon", "server", "service", "dbus", "store"];
const CLIENT_MODULES: &[&str] = &[
    "wattspan-cli",
    "wattspan-client",
    "wattspan-export",
    "wattspan-http",
    "wattspan-page",
    "wattspan-ipw",
    "wattspan-proxy",
];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

/// The files below a directory with one of these extensions.
pub fn files(directory: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap().flatten() {
        let path = entry.path();
        let name = Path::new(directory).join(entry.file_name());
        if path.is_dir() {
            all.extend(files(name.to_str().unwrap(), endings));
        } else if path.extension().and_then(|ending| ending.to_str()).is_some_and(|e| endings.contains(&e)) {
            all.push(path);
        }
    }
    all.sort();
    all
}

fn programs() -> [Command; 2] {
    let mut both = [wattspan_cli::Cli::command(), wattspan::config::Flags::command()];
    both.iter_mut().for_each(Command::build);
    both
}

fn find_flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name))
}

fn find_short(command: &Command, letter: char) -> Option<&Arg> {
    command.get_arguments().find(|arg| arg.get_short() == Some(letter))
}

/// The flags of a program and its subcommands.
fn all_flags(command: &Command) -> BTreeSet<String> {
    let mut all: BTreeSet<String> =
        command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
    command.get_subcommands().for_each(|sub| all.append(&mut all_flags(sub)));
    all
}

/// The flag's name in a word such as `[--interval`, `--color=never`, `--resume)`.
fn flag_in(word: &str) -> Option<&str> {
    let (before, name) = word.split_once("--")?;
    let end =
        name.find(|c: char| !c.is_ascii_lowercase() && c != '-' && !c.is_ascii_digit()).unwrap_or(name.len());
    let name = name[..end].trim_end_matches('-');
    let sound = !name.is_empty() && !before.ends_with(|c: char| c.is_alphanumeric() || c == '-');
    sound.then_some(name)
}

/// Collects the errors in a shell line that calls one of the two programs.
fn errors_in_call(line: &str, programs: &[Command; 2], wrong: &mut Vec<String>) {
    let words: Vec<&str> = line.split_whitespace().collect();
    for (at, word) in words.iter().enumerate() {
        let name = word.trim_matches(|c| "`'\"()$".contains(c)).rsplit('/').next().unwrap_or_default();
        let Some(program) = programs.iter().find(|program| program.get_name() == name) else { continue };
        // `systemctl reload wattspand`, `dpkg -i wattspan`: a mention, unless the preceding word makes it a command.
        let runs = |before: &&str| {
            ["$", "&&", "|", ";", "&", "sudo", "exec", "time", "ExecStart="].contains(before)
                || before.find('=').is_some_and(|at| at > 0)
                || before.ends_with([';', '|', '&', '('])
        };
        if at > 0 && !words.get(at - 1).is_some_and(runs) {
            continue;
        }
        if let Err(fault) = check_arguments(program, &words[at + 1..]) {
            wrong.push(format!("{fault} in: {line}"));
        }
    }
}

/// Checks a call word by word, as the program's parser would.
fn check_arguments(program: &Command, words: &[&str]) -> Result<(), String> {
    let (mut command, mut words) = (program, words.iter());
    while let Some(word) = words.next() {
        let bare = word.trim_matches(|c| "[]`'\"();,.".contains(c));
        if ["", "--", "|", "&&", "||", "&", "#", ">", "2>"].contains(&bare)
            || word.starts_with(['#', '>', '(', '$'])
        {
            return Ok(());
        }
        let missing = || format!("{} has no {bare}", command.get_name());
        let arg = match (flag_in(bare), bare.strip_prefix('-').and_then(|rest| rest.chars().next())) {
            (Some(name), _) => Some(find_flag(command, name).ok_or_else(missing)?),
            (None, Some(letter)) if letter.is_alphabetic() => {
                Some(find_short(command, letter).ok_or_else(missing)?)
            }
            _ => None,
        };
        match arg {
            Some(arg) if arg.get_action().takes_values() && !bare.contains('=') => drop(words.next()),
            Some(_) => {}
            None if command.has_subcommands() && bare.bytes().all(|byte| byte.is_ascii_lowercase()) => {
                match command.find_subcommand(bare) {
                    Some(sub) => command = sub,
                    None if accepts_positional(command, bare) => {}
                    None => return Err(missing()),
                }
            }
            None => {}
        }
        if word.ends_with([';', ')', '|']) {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a command takes this word as the value of its first argument, as `wattspan export csv`.
fn accepts_positional(command: &Command, word: &str) -> bool {
    let parsed = command.clone().try_get_matches_from([command.get_name(), word]);
    let kind = parsed.err().map(|error| error.kind());
    command.get_positionals().next().is_some()
        && !matches!(
            kind,
            Some(ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidSubcommand)
        )
}

#[test]
fn a_word_that_is_neither_a_subcommand_nor_a_value_is_found() {
    let programs = programs();
    let errors = |line: &str| {
        let mut wrong = Vec::new();
        errors_in_call(line, &programs, &mut wrong);
        wrong.len()
    };
    assert_eq!(errors("wattspan export csv --to out") + errors("wattspan export otlp --endpoint URL"), 0);
    assert_eq!(errors("wattspan export xml --to out") + errors("wattspan spend"), 2);
}

/// The parts of a document that a reader may type: lines of code blocks, and text between backticks.
fn code_fragments(text: &str) -> Vec<String> {
    let (mut blocks, mut prose, mut fenced) = (Vec::new(), String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            blocks.push(line.trim().to_owned());
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    for paragraph in prose.split("\n\n") {
        blocks.extend(paragraph.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " ")));
    }
    blocks
}

/// The string literals of a source file before its tests, without comments; literals continued by a backslash are
/// joined.
fn string_literals(text: &str) -> Vec<String> {
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let (mut all, mut literal) = (Vec::new(), None::<String>);
    for line in code.lines() {
        if literal.is_none() && line.trim_start().starts_with("//") {
            continue;
        }
        let line = if literal.is_some() { line.trim_start() } else { line };
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, literal.as_mut()) {
                ('"', None) => literal = Some(String::new()),
                ('"', Some(_)) => all.extend(literal.take()),
                ('\\', Some(of)) => match chars.next() {
                    Some('n') => of.push('\n'),
                    Some(escaped) => of.push(escaped),
                    None => {}
                },
                ('\'', None) if chars.peek() == Some(&'"') => drop(chars.next()),
                ('/', None) if chars.peek() == Some(&'/') => break,
                (_, Some(of)) => of.push(c),
                (_, None) => {}
            }
        }
    }
    all
}

fn documents() -> Vec<PathBuf> {
    let mut all = files("docs", &["md"]);
    all.extend(["README.md", "CHANGELOG.md", "clients/python/README.md"].map(|name| root().join(name)));
    all
}

/// Files in which every line may be a call.
fn scripts() -> Vec<PathBuf> {
    let mut all = files("examples", &["py", "sh"]);
    all.extend(files("launchd", &["sh"]));
    all.extend(files("systemd", &["service"]));
    all.extend(
        ["demo", "packaging/wattspan.toml", "HomebrewFormula/wattspan.rb"].map(|name| root().join(name)),
    );
    all
}

fn sources() -> Vec<PathBuf> {
    let all = files("src", &["rs"]).into_iter().chain(files("crates", &["rs"]));
    all.filter(|path| !path.ends_with("tests.rs")).collect()
}

/// The top-level module of a file of the root package, or the name of its crate.
fn module(path: &Path) -> String {
    let relative = path.strip_prefix(root()).unwrap();
    let inside = relative.strip_prefix("src").or_else(|_| relative.strip_prefix("crates")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Every text with its path: documents, scripts, messages.
fn texts() -> Vec<(PathBuf, String)> {
    let whole = documents().into_iter().chain(scripts()).map(|path| (path.clone(), read(&path)));
    let messages = sources().into_iter().map(|path| (path.clone(), string_literals(&read(&path)).join("\n")));
    whole.chain(messages).collect()
}

#[test]
fn every_documented_command_is_accepted() {
    let programs = programs();
    let (mut wrong, mut calls) = (Vec::new(), 0);
    for path in documents() {
        for line in code_fragments(&read(&path)) {
            calls += usize::from(line.contains("wattspan"));
            errors_in_call(&line, &programs, &mut wrong);
        }
    }
    for path in scripts() {
        read(&path)
            .lines()
            .for_each(|line| errors_in_call(line.trim_start_matches(['#', ' ']), &programs, &mut wrong));
    }
    for path in sources() {
        for literal in string_literals(&read(&path)) {
            code_fragments(&literal).iter().for_each(|code| errors_in_call(code, &programs, &mut wrong));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(calls > 40, "only {calls} calls were found");
}

#[test]
fn every_flag_that_a_document_names_exists() {
    let known: BTreeSet<String> = programs().iter().flat_map(all_flags).collect();
    let (mut wrong, mut flags) = (Vec::new(), 0);
    for path in documents() {
        // A flag by itself; another test checks calls of wattspan's programs, and other programs are not checked.
        let alone = |code: &String| code.starts_with(['-', '[']);
        for code in code_fragments(&read(&path)).iter().filter(|code| alone(code)) {
            flags += 1;
            for flag in code.split_whitespace().filter_map(flag_in) {
                if !known.contains(flag) && !FOREIGN_FLAGS.iter().any(|(foreign, _)| *foreign == flag) {
                    wrong.push(format!("{}: --{flag} in: {code}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no program of ours has these:\n{}", wrong.join("\n"));
    assert!(flags > 30, "only {flags} flags were found");
}

/// Collects what a message names that its program lacks. A flag may be qualified by its program.
fn errors_in_message(message: &str, printed_by: &[&Command], programs: &[Command; 2]) -> Vec<String> {
    let words: Vec<&str> = message.split_whitespace().collect();
    let wrong = words.iter().enumerate().filter_map(|(at, word)| {
        let flag = flag_in(word)?;
        if FOREIGN_FLAGS.iter().any(|(foreign, _)| *foreign == flag) {
            return None;
        }
        let before = words[..at].iter().rev().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
        let qualified = before.clone().find_map(|word| programs.iter().find(|one| one.get_name() == word));
        let has = |program: &&Command| all_flags(program).contains(flag);
        let known = qualified.is_some_and(|program| has(&program)) || printed_by.iter().all(has);
        (!known).then(|| format!("--{flag} in: {message}"))
    });
    wrong.collect()
}

#[test]
fn every_flag_in_a_message_exists_in_the_program_that_prints_it() {
    let programs = programs();
    let [client, daemon] = &programs;
    let (mut wrong, mut flags) = (Vec::new(), 0);
    for path in sources() {
        let module = module(&path);
        let printed_by = match module.as_str() {
            module if DAEMON_MODULES.contains(&module) => vec![daemon],
            module if CLIENT_MODULES.contains(&module) => vec![client],
            _ => vec![client, daemon],
        };
        for literal in string_literals(&read(&path)) {
            flags += literal.split_whitespace().filter_map(flag_in).count();
            let of_it = errors_in_message(&literal, &printed_by, &programs);
            wrong.extend(of_it.into_iter().map(|fault| format!("{}: {fault}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(flags > 15, "only {flags} flags were found");
}

#[test]
fn every_flag_that_help_names_exists() {
    fn walk(command: &Command, known: &BTreeSet<String>, wrong: &mut Vec<String>) {
        let help = command.clone().render_long_help().to_string();
        for flag in help.split_whitespace().filter_map(flag_in) {
            if !known.contains(flag) && !FOREIGN_FLAGS.iter().any(|(foreign, _)| *foreign == flag) {
                wrong.push(format!("{}: --{flag}", command.get_name()));
            }
        }
        command.get_subcommands().for_each(|sub| walk(sub, known, wrong));
    }
    let mut wrong = Vec::new();
    for program in programs() {
        walk(&program, &all_flags(&program), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn documented_packages_groups_features_and_drop_ins_exist() {
    let groups: Vec<String> = read(&root().join("systemd/wattspan.sysusers"))
        .lines()
        .filter_map(|line| line.strip_prefix("g ").or_else(|| line.strip_prefix("m ")).map(str::to_owned))
        .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(groups.iter().any(|group| group == "wattspan"), "{groups:?}");
    let features: toml::Table = read(&root().join("crates/wattspan-cli/Cargo.toml")).parse().unwrap();
    let features = features["features"].as_table().unwrap();
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        let words: Vec<&str> =
            text.split_whitespace().map(|word| word.trim_matches(|c| "`\"',.;()".contains(c))).collect();
        let mut fault = |what: String| wrong.push(format!("{}: {what}", path.display()));
        for window in words.windows(3) {
            match window {
                // The package is in neither registry.
                ["cargo" | "pip", "install", "wattspan"] => fault(window.join(" ")),
                ["usermod", "-aG", names] if !names.starts_with('{') => {
                    let unknown = names.split(',').find(|name| !groups.iter().any(|group| group == name));
                    unknown.into_iter().for_each(|name| fault(format!("usermod -aG {name}")));
                }
                ["--features", named, _] if !features.contains_key(*named) => {
                    fault(format!("--features {named}"))
                }
                _ => {}
            }
        }
        for drop_in in words.iter().filter(|word| word.ends_with(".conf") && !word.contains(['/', '*', '<']))
        {
            let known = ["systemd/examples", "systemd", "launchd", "systemd/dbus"];
            if !known.iter().any(|folder| root().join(folder).join(drop_in).exists()) {
                fault(format!("the drop-in {drop_in}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_checks_can_fail() {
    let programs = programs();
    let [client, daemon] = &programs;
    let faults = |line: &str| {
        let mut wrong = Vec::new();
        errors_in_call(line, &programs, &mut wrong);
        wrong.len()
    };
    for sound in [
        "wattspan run -r 5 -- sleep --forever",
        "wattspan --socket /run/x reload",
        "sudo wattspand --check --rate-hz 5",
        "systemctl reload wattspand --no-block",
        "wattspan ipw run --url http://127.0.0.1:8000/v1 -c 4 -o runs/small   # --none",
    ] {
        assert_eq!(faults(sound), 0, "{sound}");
    }
    for wrong in [
        "wattspan --nvml-library x doctor",
        "wattspan walk",
        "wattspan ipw walk",
        "wattspan read -- x; wattspan balance --since 3",
        "sudo wattspand --watch",
        "$ wattspan ipw run -Z",
        "x=1 wattspand --json",
    ] {
        assert_eq!(faults(wrong), 1, "{wrong}");
    }
    let lacks = |message: &str, by: &[&Command]| errors_in_message(message, by, &programs).len();
    assert_eq!(lacks("name the library with --nvml-library", &[client, daemon]), 1);
    assert_eq!(lacks("name the library: wattspand --nvml-library", &[client, daemon]), 0);
    assert_eq!(lacks("name it with --nvml-library", &[daemon]), 0);
    assert_eq!(lacks("wattspand --watch", &[daemon]), 1);
    assert_eq!(code_fragments("a `wattspan\nread` b\n\n```sh\nx --y\n```\n"), ["x --y", "wattspan read"]);
    assert_eq!(
        string_literals("// \"no\"\nlet a = \"b \\\n    --c\"; // \"d\"\n#[cfg(test)]\n\"e\"\n"),
        ["b --c"]
    );
}
