//! The service on macOS, as far as Linux can test it: its plist, and its installation with fakes of the system's
//! commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const LABEL: &str = "org.wattspan.wattspand";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("launchd")
}

/// A property list as JSON, parsed by Python's plistlib.
fn parsed(plist: &Path) -> Value {
    let program = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let output = Command::new("python3").args(["-c", program]).arg(plist).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of the programs of the package in a folder.
fn programs(package: &str) -> Vec<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap();
    bins.iter().map(|bin| bin["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_homebrew_formula_installs_the_package_of_each_program_that_it_runs() {
    let formula = Path::new(env!("CARGO_MANIFEST_DIR")).join("HomebrewFormula/wattspan.rb");
    let formula = fs::read_to_string(formula).unwrap();
    let installed: Vec<String> = formula
        .lines()
        .filter_map(|line| line.trim().strip_prefix("system \"cargo\", \"install\", *std_cargo_args"))
        .flat_map(|rest| {
            programs(rest.strip_prefix("(path: \"").map_or(".", |rest| rest.trim_end_matches("\")")))
        })
        .collect();
    assert_eq!(installed, ["wattspand", "wattspan"]);
    for used in formula.split("bin/\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(installed.iter().any(|name| name == used), "{used} is not installed");
    }
}

#[test]
fn the_plist_has_only_keys_of_launchds_with_values_of_their_types() {
    let plist = parsed(&folder().join(format!("{LABEL}.plist")));
    // Keys of launchd.plist(5). launchd ignores unknown keys, so a misspelt key would go unnoticed.
    type Fits = fn(&Value) -> bool;
    let known: &[(&str, Fits)] = &[
        ("Label", Value::is_string),
        ("ProgramArguments", Value::is_array),
        ("UserName", Value::is_string),
        ("GroupName", Value::is_string),
        ("InitGroups", Value::is_boolean),
        ("Umask", Value::is_u64),
        ("WorkingDirectory", Value::is_string),
        ("Sockets", Value::is_object),
        ("RunAtLoad", Value::is_boolean),
        ("KeepAlive", Value::is_object),
        ("ThrottleInterval", Value::is_u64),
        ("ExitTimeOut", Value::is_u64),
        ("ProcessType", Value::is_string),
        ("SoftResourceLimits", Value::is_object),
        ("HardResourceLimits", Value::is_object),
        ("StandardOutPath", Value::is_string),
        ("StandardErrorPath", Value::is_string),
    ];
    for (key, value) in plist.as_object().unwrap() {
        let (_, fits) = known.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("no key {key}"));
        assert!(fits(value), "{key}: {value}");
    }
    assert_eq!(plist["Label"], LABEL, "the file's name too");
    assert!(
        ["Standard", "Adaptive", "Interactive"].iter().any(|kind| plist["ProcessType"] == *kind),
        "not slowed down"
    );
    assert_eq!(plist["KeepAlive"], json!({ "SuccessfulExit": false }));
    assert_eq!((&plist["RunAtLoad"], &plist["UserName"]), (&json!(true), &json!("_wattspan")));
}

#[test]
fn the_socket_is_for_one_group_and_has_the_name_that_the_daemon_asks_for() {
    let plist = parsed(&folder().join(format!("{LABEL}.plist")));
    let socket = json!({ "Listener": {
        "SockFamily": "Unix", "SockType": "stream", "SockPathName": "/var/run/wattspan.sock",
        // Decimal, as all integers in a property list; no access until the installation sets the group.
        "SockPathMode": 0o660, "SockPathOwner": 0, "SockPathGroup": 0,
    } });
    assert_eq!(plist["Sockets"], socket);
    let source = fs::read_to_string(folder().join("../src/launchd/linked_ffi.rs")).unwrap();
    assert!(source.contains("c\"Listener\""));
}

#[test]
fn the_daemon_understands_the_arguments_that_the_plist_gives_it() {
    let plist = parsed(&folder().join(format!("{LABEL}.plist")));
    let arguments: Vec<&str> =
        plist["ProgramArguments"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "/usr/local/libexec/wattspand");
    let output =
        Command::new(env!("CARGO_BIN_EXE_wattspand")).args(&arguments[1..]).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("state_dir = \"/var/db/wattspan\""));
}

/// Fakes of the macOS commands that the scripts call; they log their arguments. `dscl` keeps each record as a file with
/// one line per key.
struct Mac {
    dir: tempfile::TempDir,
}

const COMMANDS: &[(&str, &str)] = &[
    ("uname", "echo Darwin"),
    ("id", "echo 0"),
    ("sleep", ":"),
    ("install", "echo install \"$@\" >>$LOG; for a; do last=$a; done; case $last in *.plist) cp \"$7\" $DB/../installed;; esac"),
    ("rm", "echo rm \"$@\" >>$LOG"),
    ("plutil", "echo plutil \"$@\" >>$LOG; [ $1 != -replace ] || python3 -c 'import plistlib,sys; p=plistlib.load(open(sys.argv[1],\"rb\")); p[\"Sockets\"][\"Listener\"][\"SockPathGroup\"]=int(sys.argv[2]); plistlib.dump(p,open(sys.argv[1],\"wb\"))' \"$5\" \"$4\""),
    ("launchctl", "echo launchctl \"$@\" >>$LOG; case $1 in
        print) [ -e $DB/loaded ];;
        bootout) /bin/rm $DB/loaded;;
        bootstrap) [ ! -e $DB/loaded ] || exit 5; echo >$DB/loaded;;
      esac"),
    ("dscl", "f=$DB/$(echo $3 | tr / _); case $2 in
        -create) [ $# -gt 3 ] && echo \"$4: $5\" >>$f || : >>$f;;
        -read) [ -e $f ] && grep \"^$4\" $f;;
        -delete) echo dscl \"$@\" >>$LOG; /bin/rm $f;;
        -list) for g in $DB/$(echo $3 | tr / _)_*; do [ -e $g ] && sed -n \"s|^$4: |$(basename $g) |p\" $g; done; [ $3 != /Groups ] || echo staff 20; [ $3 != /Groups ] || echo taken 320;;
      esac"),
];

impl Mac {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "db", "built"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let mac = Self { dir };
        for (name, body) in COMMANDS {
            mac.program(&format!("bin/{name}"), body);
        }
        mac.program("built/wattspan", ":");
        mac.program("built/wattspand", ":");
        mac
    }

    fn program(&self, path: &str, body: &str) {
        let path = self.dir.path().join(path);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.dir.path().join("bin").display());
        Command::new("sh")
            .arg(folder().join(script))
            .args(arguments)
            .env("PATH", path)
            .env("DB", self.dir.path().join("db"))
            .env("LOG", self.dir.path().join("log"))
            .output()
            .unwrap()
    }

    fn install(&self) -> Output {
        self.run("install.sh", &[self.dir.path().join("built").to_str().unwrap()])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn record(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("db").join(name)).unwrap_or_default()
    }
}

fn went_well(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_installation_makes_groups_a_user_and_a_socket_for_the_group() {
    let mac = Mac::new();
    went_well(&mac.install());
    // The group id 320 is already taken.
    assert!(mac.record("_Groups__wattspan").contains("PrimaryGroupID: 321"));
    assert!(mac.record("_Groups_wattspan").contains("PrimaryGroupID: 322"));
    assert!(mac.record("_Groups_wattspan-telemetry").contains("PrimaryGroupID: 323"));
    let user = mac.record("_Users__wattspan");
    assert!(user.contains("UniqueID: 324") && user.contains("PrimaryGroupID: 321"), "{user}");
    assert!(user.contains("UserShell: /usr/bin/false") && user.contains("Password: *"), "{user}");
    let installed = parsed(&mac.dir.path().join("installed"));
    assert_eq!(installed["Sockets"]["Listener"]["SockPathGroup"], 322);
    let log = mac.log();
    assert!(log.contains("install -o root -g wheel -m 0755"), "{log}");
    assert!(
        log.contains(&format!("launchctl bootstrap system /Library/LaunchDaemons/{LABEL}.plist")),
        "{log}"
    );
    assert!(!log.contains("bootout"), "there was nothing to take out: {log}");
}

#[test]
fn a_second_installation_updates_and_makes_nothing_twice() {
    let mac = Mac::new();
    went_well(&mac.install());
    let before = mac.record("_Users__wattspan");
    went_well(&mac.install());
    assert_eq!(mac.record("_Users__wattspan"), before);
    assert_eq!(mac.log().matches(&format!("launchctl bootout system/{LABEL}")).count(), 1);
    assert_eq!(mac.log().matches("launchctl bootstrap").count(), 2);
}

#[test]
fn what_cannot_be_installed_is_refused_before_anything_is_changed() {
    let mac = Mac::new();
    fs::remove_file(mac.dir.path().join("built/wattspand")).unwrap();
    let output = mac.install();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no ") && text.contains("cargo build --release"), "{text}");
    mac.program("bin/uname", "echo Linux");
    assert!(String::from_utf8(mac.install().stderr).unwrap().contains("no macOS"));
    mac.program("bin/id", "echo 501");
    assert!(String::from_utf8(mac.install().stderr).unwrap().contains("sudo sh launchd/install.sh"));
    assert_eq!(mac.log(), "");
}

#[test]
fn what_is_taken_away_is_the_service_and_with_all_the_rest_of_it() {
    let mac = Mac::new();
    went_well(&mac.install());
    went_well(&mac.run("uninstall.sh", &[]));
    let log = mac.log();
    assert!(
        log.contains(&format!("launchctl bootout system/{LABEL}"))
            && log.contains("rm -f /usr/local/libexec")
    );
    assert!(!log.contains("/var/db/wattspan /") && !log.contains("rm -rf"), "state stays: {log}");
    assert!(mac.record("_Users__wattspan").contains("UniqueID"));
    went_well(&mac.run("uninstall.sh", &["--all"]));
    assert!(mac.log().contains("rm -rf /usr/local/etc/wattspan /var/db/wattspan"));
    for record in ["_Users__wattspan", "_Groups__wattspan", "_Groups_wattspan", "_Groups_wattspan-telemetry"]
    {
        assert_eq!(mac.record(record), "", "{record}");
    }
    assert!(!mac.run("uninstall.sh", &["--everything"]).status.success());
}
