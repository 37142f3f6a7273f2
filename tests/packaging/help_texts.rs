//! The help texts of every command of both programs, compared with those in `tests/fixtures/help/`.
//!
//! A changed text shows as a changed file in review. `WATTSPAN_WRITE_HELP=1 cargo test --test packaging help_texts`
//! writes the files anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};

/// The width at which the texts are wrapped.
const WIDTH: usize = 100;

/// The help text of `command` and of each command below it, by file name.
fn collect_help(command: &mut Command, name: &str, texts: &mut BTreeMap<String, String>) {
    let text = command.render_long_help().to_string();
    // Rendering leaves spaces at the ends of empty lines.
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    texts.insert(format!("{name}.txt"), lines.join("\n") + "\n");
    for child in command.get_subcommands_mut().filter(|child| child.get_name() != "help") {
        let name = format!("{name}-{}", child.get_name());
        collect_help(child, &name, texts);
    }
}

fn help_texts() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for command in [wattspan_cli::Cli::command(), wattspan::config::Flags::command()] {
        let mut command = command.term_width(WIDTH);
        command.build();
        let name = command.get_name().to_owned();
        collect_help(&mut command, &name, &mut texts);
    }
    texts
}

#[test]
fn the_help_of_every_command_is_the_reviewed_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/help");
    let texts = help_texts();
    assert!(texts.len() > 15, "only {} commands were found", texts.len());
    if std::env::var_os("WATTSPAN_WRITE_HELP").is_some() {
        fs::create_dir_all(&folder).unwrap();
        texts.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }
    for (name, text) in &texts {
        let reviewed = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert_eq!(
            *text, reviewed,
            "tests/fixtures/help/{name} is another text; write the files anew and review them"
        );
    }
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let gone: Vec<String> = files.filter(|file| !texts.contains_key(file)).collect();
    assert!(gone.is_empty(), "help texts of commands that do not exist: {gone:?}");
}

/// Every option and positional argument is explained.
#[test]
fn every_argument_has_a_help_text() {
    fn check(command: &Command) {
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some() || argument.is_hide_set(),
                "{}: {} has no help",
                command.get_name(),
                argument.get_id()
            );
        }
        command.get_subcommands().for_each(check);
    }
    for mut command in [wattspan_cli::Cli::command(), wattspan::config::Flags::command()] {
        command.build();
        check(&command);
    }
}
