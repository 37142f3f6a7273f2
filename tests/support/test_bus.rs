//! A private message bus configured like the system bus, and clients on it.
//!
//! Owns one `dbus-daemon` with the installed policy, extended so that the user of the tests may own the name. Tests
//! skip where there is no `dbus-daemon`.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};
use zbus::message::Flags;
use zbus::{Connection, Message, MessageStream, Variant};

pub const NAME: &str = "org.wattspan.Wattspan1";
pub const PATH: &str = "/org/wattspan/Wattspan1";
pub const INTERFACE: &str = "org.wattspan.Wattspan1";
pub const ERROR: &str = "org.wattspan.Wattspan1.Error.";

/// The system bus's configuration ahead of any service's policy.
const SYSTEM: &str = r#"
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>"#;

pub struct TestBus {
    child: Child,
    dir: tempfile::TempDir,
}

impl TestBus {
    /// Starts a bus on which the test's user may own the name; skips the test and returns `None` where none can run.
    pub fn start() -> Option<Self> {
        let user = rustix::process::geteuid().as_raw().to_string();
        Self::with_owner(&user)
    }

    /// Starts a bus on which only `user` may own the name: `wattspan`, as installed.
    pub fn with_owner(user: &str) -> Option<Self> {
        Self::with(user, "")
    }

    /// As `with_owner`, with one more policy, which `user` may need to own another name.
    pub fn with(user: &str, more: &str) -> Option<Self> {
        if Command::new("dbus-daemon").arg("--version").output().is_err() {
            crate::support::skip::skip("dbus-daemon", "install dbus");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let installed =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/dbus/org.wattspan.Wattspan1.conf");
        let policy = std::fs::read_to_string(installed).unwrap();
        assert!(policy.contains("<policy user=\"wattspan\">"));
        let policy = policy.replace("user=\"wattspan\"", &format!("user=\"{user}\""));
        std::fs::write(dir.path().join("policy.conf"), policy).unwrap();
        let more = format!("<busconfig>{more}</busconfig>\n");
        std::fs::write(dir.path().join("more.conf"), more).unwrap();
        let child = spawn(dir.path());
        Some(Self { child, dir })
    }

    /// Stops the bus and starts it again at the same address.
    pub fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.dir.path());
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(self.dir.path().join("bus"));
    }

    /// A path in a directory from which other users can run programs.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.dir.path().join("bus").display())
    }

    /// The process of the bus.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The line of the daemon's configuration that names this bus.
    pub fn config_line(&self) -> String {
        format!("bus = {:?}\n", self.address())
    }

    pub async fn client(&self) -> BusClient {
        BusClient::connect(&self.address()).await
    }
}

impl Drop for TestBus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let configuration = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig>\n  <type>system</type>\n  \
         <listen>unix:path={0}/bus</listen>\n  <auth>EXTERNAL</auth>{SYSTEM}\n  <include>{0}/policy.conf</include>\n\
         <include>{0}/more.conf</include>\n</busconfig>\n",
        dir.display()
    );
    std::fs::write(dir.join("bus.conf"), configuration).unwrap();
    let mut child = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", dir.join("bus.conf").display()))
        .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    assert!(address.starts_with("unix:"), "the bus does not start: {address:?}");
    child
}

/// Runs the asynchronous part of a test.
pub fn block_on<T>(of: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(of)
}

pub async fn next_message(messages: &mut MessageStream) -> Option<zbus::Result<Message>> {
    use zbus::export::futures_core::Stream;
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *messages).poll_next(context)).await
}

pub struct BusClient {
    pub bus: Connection,
}

/// The result of a call: the reply, or the error's name and message.
pub type CallResult = Result<Value, (String, String)>;

impl BusClient {
    /// Connects to the bus at `address`.
    pub async fn connect(address: &str) -> Self {
        Self { bus: zbus::connection::Builder::address(address).build().await.unwrap() }
    }

    /// Waits until the daemon is on the bus.
    pub async fn wait_for_daemon(&self) {
        let deadline = std::time::Instant::now() + super::support::TEST_TIMEOUT;
        while self.ping_bus().await.is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the daemon is not on the bus: {:?}",
                self.ping_bus().await
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// A call that the bus itself answers, without any service.
    pub async fn ping_bus(&self) -> zbus::Result<Message> {
        self.bus.call_method(Some(NAME), PATH, Some("org.freedesktop.DBus.Peer"), "Ping", &()).await
    }

    /// Calls a method of the daemon's interface, with arguments given as JSON.
    pub async fn call(&self, member: &str, arguments: Value) -> CallResult {
        let message = message(member, &arguments, Flags::empty());
        parse_reply(self.send(message).await)
    }

    /// Calls a method that must succeed; returns its reply.
    pub async fn call_ok(&self, member: &str, arguments: Value) -> Value {
        self.call(member, arguments.clone()).await.unwrap_or_else(|no| panic!("{member} {arguments}: {no:?}"))
    }

    /// Calls a method that must fail; returns the last component of the error's name.
    pub async fn call_error(&self, member: &str, arguments: Value) -> String {
        let (name, _) = self.call(member, arguments).await.expect_err("a refusal");
        name.strip_prefix(ERROR).unwrap_or(&name).to_owned()
    }

    /// Calls a method without expecting a reply.
    pub async fn oneway(&self, member: &str, arguments: Value) {
        self.bus.send(&message(member, &arguments, Flags::NO_REPLY_EXPECTED)).await.unwrap();
    }

    /// Sends a call and waits for its reply.
    pub async fn send(&self, message: Message) -> Message {
        let mut messages = MessageStream::from(&self.bus);
        let serial = message.primary_header().serial_num();
        self.bus.send(&message).await.unwrap();
        loop {
            let answer = next_message(&mut messages).await.expect("the bus goes on").unwrap();
            if answer.header().reply_serial() == Some(serial) {
                return answer;
            }
        }
    }

    /// Calls a method of any interface of the daemon.
    pub async fn call_any<B>(&self, interface: Option<&str>, member: &str, body: &B) -> CallResult
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let call = Message::method_call(PATH, member).destination(NAME);
        let call = match interface {
            Some(interface) => call.interface(interface),
            None => call,
        };
        parse_reply(self.send(call.build(body).unwrap()).await)
    }

    pub async fn property(&self, name: &str) -> CallResult {
        self.call_any(Some("org.freedesktop.DBus.Properties"), "Get", &(INTERFACE, name)).await
    }

    pub async fn properties(&self) -> Value {
        self.call_any(Some("org.freedesktop.DBus.Properties"), "GetAll", &INTERFACE).await.unwrap()
    }
}

fn parse_reply(answer: Message) -> CallResult {
    let body = answer.body();
    let header = answer.header();
    let fields = || -> Vec<Value> {
        if body.is_empty() {
            return Vec::new();
        }
        let structure: zbus::Structure = body.deserialize().unwrap();
        structure.fields().iter().map(to_json).collect()
    };
    match header.error_name() {
        Some(name) => {
            let words =
                fields().first().and_then(|words| words.as_str().map(str::to_owned)).unwrap_or_default();
            Err((name.as_str().to_owned(), words))
        }
        None => Ok(fields().into_iter().next().unwrap_or(Value::Null)),
    }
}

/// Builds a call of the daemon's interface, with arguments given as JSON.
pub fn message(member: &str, arguments: &Value, flags: Flags) -> Message {
    let call = Message::method_call(PATH, member).destination(NAME).interface(INTERFACE).with_flags(flags);
    let text = |at: usize| arguments[at].as_str().unwrap().to_owned();
    let built = match member {
        "OpenSpan" | "ListSpans" | "SumSpans" => call.build(&options(&arguments[0])),
        "CloseSpan" => call.build(&(text(0), options(&arguments[1]))),
        "ListSpansAfter" => call.build(&(arguments[0].as_u64().unwrap(), options(&arguments[1]))),
        "MarkPhase" => call.build(&(text(0), text(1), options(&arguments[2]))),
        "SetWeight" => call.build(&(text(0), arguments[1].as_f64().unwrap(), options(&arguments[2]))),
        "CancelSpan" | "GetSpan" => call.build(&text(0)),
        "ReadWindow" => call.build(&(arguments[0].as_u64().unwrap(), arguments[1].as_u64().unwrap())),
        _ => call.build(&()),
    };
    built.unwrap()
}

fn options(given: &Value) -> BTreeMap<String, Variant<'static>> {
    let none = Map::new();
    let given = given.as_object().unwrap_or(&none);
    given.iter().map(|(name, value)| (name.clone(), variant(value))).collect()
}

fn variant(value: &Value) -> Variant<'static> {
    match value {
        Value::Bool(so) => (*so).into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => number.as_f64().unwrap().into(),
        },
        Value::String(text) => text.clone().into(),
        Value::Array(list) => {
            list.iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<String>>().into()
        }
        Value::Object(pairs) => {
            let pair = |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap().to_owned());
            pairs.iter().map(pair).collect::<BTreeMap<String, String>>().into()
        }
        Value::Null => panic!("D-Bus knows no null"),
    }
}

/// Converts a D-Bus value to JSON.
pub fn to_json(value: &Variant) -> Value {
    match value {
        Variant::Bool(so) => json!(so),
        Variant::U64(number) => json!(number),
        Variant::I64(number) => json!(number),
        Variant::F64(number) => json!(number),
        Variant::Str(text) => json!(text.as_str()),
        Variant::Variant(inner) => to_json(inner),
        Variant::Array(list) => list.inner().iter().map(to_json).collect(),
        Variant::Dict(dict) => {
            let pair = |(name, value): (&Variant, &Variant)| {
                let Variant::Str(name) = name else { panic!("a key that is no text") };
                (name.as_str().to_owned(), to_json(value))
            };
            Value::Object(dict.iter().map(pair).collect())
        }
        other => panic!("a type that the meter does not give: {other:?}"),
    }
}
