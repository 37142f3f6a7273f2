//! The polkit check: which subject is checked, and that any answer but a clear yes is a no.
//!
//! The daemon's D-Bus server runs in this process, with a fake service that allows Reload to the daemon's own
//! credentials only, and a fake polkit whose answer the test chooses.

use crate::support;
use crate::test_bus;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::test_bus::{INTERFACE, NAME, PATH, TestBus, block_on};
use serde_json::{Value, json};
use wattspan::config::{Config, DbusConfig};
use wattspan::server::{ForwardedEvent, ForwardedReceiver};
use wattspan::service::{Reply, Request};
use wattspan_client::protocol::{DaemonInfo, MethodError, ReloadReply};
use wattspan_system::unix_socket::PeerCredentials;
use zbus::message::{Flags, Type};
use zbus::{Message, MessageStream, Variant};

const AUTHORITY: &str = "org.freedesktop.PolicyKit1";

/// A request to polkit: the subject's kind and name, the action, the flags.
type PolkitRequest = (String, String, String, u32);

/// The answer of the fake polkit.
#[derive(Clone, Copy)]
enum PolkitReply {
    Yes,
    No,
    Password,
    Nonsense,
    Failure,
}

/// The fake service: performs `Reload` for the daemon's own credentials, and refuses it to all others.
fn serve(
    receiver: &ForwardedReceiver,
    clients: &mut BTreeMap<u64, PeerCredentials>,
    reloads: &Mutex<Vec<u32>>,
) {
    for (client, event) in receiver.take_events() {
        let call = match event {
            ForwardedEvent::Connected { credentials, .. } => {
                clients.insert(client, credentials);
                continue;
            }
            ForwardedEvent::Called(call) => call,
            ForwardedEvent::Left => continue,
        };
        // Credentials from the bus have no primary group; the daemon's own have one.
        let own = clients[&client].gid == rustix::process::getegid().as_raw();
        let result = match call.request.unwrap() {
            Request::Reload(_) if own => {
                reloads.lock().unwrap().push(clients[&client].uid);
                Ok(Reply::Reload(ReloadReply::default()))
            }
            Request::Reload(_) => Err(MethodError::AccessDenied { needs: "admin".into() }),
            _ => Ok(Reply::Info(Box::new(info()))),
        };
        (call.reply)(result);
    }
}

fn info() -> DaemonInfo {
    let info = json!({
        "version": "0", "boot_id": "b", "now_ns": 1, "horizon_ns": 1, "history_ns": 1, "domains": [], "absent": [],
        "samplers": [], "access": "none",
    });
    serde_json::from_value(info).unwrap()
}

/// A bus with the D-Bus server, the fake polkit's answer, and the requests that polkit and the service received.
struct PolkitFixture {
    bus: TestBus,
    requests: Receiver<PolkitRequest>,
    reloads: Arc<Mutex<Vec<u32>>>,
    _server: wattspan::dbus::DbusServer,
}

fn fixture(polkit_reply: Option<PolkitReply>) -> Option<PolkitFixture> {
    let user = rustix::process::geteuid().as_raw().to_string();
    let more = format!(
        "<policy user=\"{user}\"><allow own=\"{AUTHORITY}\"/></policy>\
         <policy context=\"default\"><allow send_destination=\"{AUTHORITY}\"/></policy>"
    );
    let bus = TestBus::with(&user, &more)?;
    let (request_sender, requests) = channel();
    if let Some(polkit_reply) = polkit_reply {
        let (address, (ready, is_ready)) = (bus.address(), channel());
        thread::spawn(move || {
            block_on(async {
                let polkit = test_bus::BusClient::connect(&address).await;
                let messages = MessageStream::from(&polkit.bus);
                polkit.bus.request_name(AUTHORITY).await.unwrap();
                ready.send(()).unwrap();
                authorize(&polkit.bus, messages, polkit_reply, request_sender).await;
            });
        });
        is_ready.recv().unwrap();
    }
    let config = Config { bus: DbusConfig::Address(bus.address()), ..Config::default() };
    let (server, receiver) = wattspan::dbus::start(&config, |_| ()).unwrap().unwrap();
    let reloads = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::clone(&reloads);
    thread::spawn(move || {
        let mut clients = BTreeMap::new();
        loop {
            serve(&receiver, &mut clients, &done);
            support::sleep_ms(1);
        }
    });
    Some(PolkitFixture { bus, requests, reloads, _server: server })
}

async fn authorize(
    polkit: &zbus::Connection,
    mut messages: MessageStream,
    polkit_reply: PolkitReply,
    request_sender: std::sync::mpsc::Sender<PolkitRequest>,
) {
    while let Some(message) = test_bus::next_message(&mut messages).await {
        let message = message.unwrap();
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let body = message.body();
        type CheckAuthorizationArgs<'a> =
            ((String, BTreeMap<String, Variant<'a>>), String, BTreeMap<String, String>, u32, String);
        let ((kind, about), action, _, flags, _): CheckAuthorizationArgs = body.deserialize().unwrap();
        let Variant::Str(name) = &about["name"] else { panic!("no name: {about:?}") };
        let _ = request_sender.send((kind, name.as_str().to_owned(), action, flags));
        let header = message.header();
        let details = BTreeMap::<String, String>::new();
        let answer = match polkit_reply {
            PolkitReply::Yes => Message::method_return(&header).build(&((true, false, details),)),
            PolkitReply::No => Message::method_return(&header).build(&((false, false, details),)),
            PolkitReply::Password => Message::method_return(&header).build(&((false, true, details),)),
            PolkitReply::Nonsense => Message::method_return(&header).build(&"yes"),
            PolkitReply::Failure => {
                Message::error(&header, "org.freedesktop.PolicyKit1.Error.Failed").build(&"broken")
            }
        };
        polkit.send(&answer.unwrap()).await.unwrap();
    }
}

#[test]
fn with_polkits_consent_the_daemon_reloads_and_the_subject_is_the_callers_name() {
    let Some(fixture) = fixture(Some(PolkitReply::Yes)) else { return };
    block_on(async {
        let client = fixture.bus.client().await;
        client.wait_for_daemon().await;
        assert_eq!(client.call_ok("Reload", json!([])).await, Value::Null);
        let name = client.bus.unique_name().unwrap().to_string();
        let request = fixture.requests.recv().unwrap();
        let action = "org.wattspan.wattspand.reload".to_owned();
        assert_eq!(request, ("system-bus-name".to_owned(), name.clone(), action.clone(), 0));
        let call = Message::method_call(PATH, "Reload").destination(NAME).interface(INTERFACE);
        let call = call.with_flags(Flags::ALLOW_INTERACTIVE_AUTH).build(&()).unwrap();
        assert!(client.send(call).await.header().error_name().is_none());
        assert_eq!(fixture.requests.recv().unwrap(), ("system-bus-name".to_owned(), name, action, 1));
    });
    assert_eq!(*fixture.reloads.lock().unwrap(), [rustix::process::geteuid().as_raw(); 2]);
}

#[test]
fn everything_but_a_clear_yes_is_a_no() {
    for polkit_reply in [
        None,
        Some(PolkitReply::No),
        Some(PolkitReply::Password),
        Some(PolkitReply::Nonsense),
        Some(PolkitReply::Failure),
    ] {
        let Some(fixture) = fixture(polkit_reply) else { return };
        block_on(async {
            let client = fixture.bus.client().await;
            client.wait_for_daemon().await;
            let (name, words) = client.call("Reload", json!([])).await.unwrap_err();
            assert_eq!(name, "org.wattspan.Wattspan1.Error.AccessDenied", "{words}");
            assert!(words.starts_with("this requires root, or authorization by polkit: "), "{words}");
            client.call_ok("GetInfo", json!([])).await;
        });
        assert!(fixture.reloads.lock().unwrap().is_empty());
    }
}
