//! Every message from the bus, and who gets it.
//!
//! Owns the list of clients and the bounds on what waits for them: calls of one client, bytes of all. What is beyond is
//! answered at once and forgotten. Never waits for a client, nor for an answer of the bus: its own questions would stand
//! in the queue behind the message in hand.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use zbus::Message;
use zbus::message::Type;

use super::PATH;
use super::credential;
use super::denial::Denial;
use super::desk::{Call, Desk};
use super::guest;
use super::intake::was_cut;
use super::introspection;
use crate::protocol::Refusal;

/// Most clients at a time; each is watched with a match rule, of which a bus allows 512.
pub const GUESTS: usize = 448;

/// Calls of one client that wait to be handled; half of the replies that the system bus lets one client wait for.
const WAITING: usize = 64;

/// Bytes of all calls that are not answered yet.
const WAITING_BYTES: usize = 8 << 20;

/// How long clients may take to be told the last answers when the service ends.
const FAREWELL: Duration = Duration::from_millis(300);

/// The reception.
#[derive(Debug)]
pub struct Reception {
    desk: Arc<Desk>,
    guests: HashMap<String, mpsc::Sender<Call>>,
    hosting: JoinSet<()>,
    room: Arc<Semaphore>,
}

impl Reception {
    /// With nobody there yet.
    pub fn new(desk: Arc<Desk>) -> Self {
        let room = Arc::new(Semaphore::new(WAITING_BYTES));
        Self { desk, guests: HashMap::new(), hosting: JoinSet::new(), room }
    }

    /// Handles a message.
    pub async fn take(&mut self, message: Message) {
        while self.hosting.try_join_next().is_some() {}
        match message.message_type() {
            Type::MethodCall => {
                if let Err(denial) = self.direct(&message).await {
                    self.desk.deny(&message, &denial).await;
                }
            }
            Type::Signal => {
                if let Some(name) = credential::gone(&message) {
                    self.guests.remove(&name);
                }
            }
            _ => {}
        }
    }

    /// Answers what needs no service, and gives everything else to the caller's own line.
    async fn direct(&mut self, message: &Message) -> Result<(), Denial> {
        let header = message.header();
        let path = header.path().map(|path| path.as_str()).unwrap_or_default();
        let interface = header.interface().map(|interface| interface.as_str());
        let member = header.member().map(|member| member.as_str()).unwrap_or_default();
        match (interface, member) {
            (Some("org.freedesktop.DBus.Peer"), "Ping") => self.desk.answer(message, &()).await,
            (Some("org.freedesktop.DBus.Peer"), "GetMachineId") => {
                self.desk.answer(message, &machine_id()?).await;
            }
            (Some("org.freedesktop.DBus.Introspectable"), "Introspect") => {
                let text = introspection::at(path).ok_or_else(|| Denial::unknown("Object", path))?;
                self.desk.answer(message, &text).await;
            }
            _ if path != PATH => return Err(Denial::unknown("Object", path)),
            _ if guest::is_for_guests(interface, member) => self.hand_over(message)?,
            (Some(interface), _) if !is_ours(interface) => {
                return Err(Denial::unknown("Interface", interface));
            }
            _ => return Err(Denial::unknown("Method", member)),
        }
        Ok(())
    }

    fn hand_over(&mut self, message: &Message) -> Result<(), Denial> {
        if was_cut(message) {
            let reason = format!("is longer than {} bytes", self.desk.most_bytes);
            return Err(Denial::from(&Refusal::InvalidValue { field: "message".into(), reason }));
        }
        let header = message.header();
        let Some(sender) = header.sender() else { return Err(Denial::unknown_caller("it names no sender")) };
        let bytes = u32::try_from(message.data().len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes);
        let room = room.map_err(|_| Denial::busy("too many calls wait to be handled; ask again later"))?;
        let call = Call { message: message.clone(), _room: room };
        match self.line_of(sender.as_str())?.try_send(call) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Denial::busy("too many calls of yours wait to be handled; wait for the answers"))
            }
            // Opened just now, or seen open just now on this same thread.
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Denial::gone()),
        }
    }

    /// The line of the client of this name; a new one where there is none, or where the service hung up on the last.
    fn line_of(&mut self, name: &str) -> Result<&mpsc::Sender<Call>, Denial> {
        if self.guests.get(name).is_none_or(mpsc::Sender::is_closed) {
            if self.hosting.len() >= GUESTS {
                self.guests.retain(|_, line| !line.is_closed());
                let (quota, limit) = ("clients on the bus".to_owned(), GUESTS as u64);
                return Err(Denial::from(&Refusal::QuotaExceeded { quota, limit }));
            }
            let (line, calls) = mpsc::channel(WAITING);
            self.hosting.spawn(guest::host(Arc::clone(&self.desk), name.to_owned(), calls));
            self.guests.insert(name.to_owned(), line);
        }
        self.guests.get(name).ok_or_else(Denial::gone)
    }

    /// Nothing more is taken; what the service has answered is still told, if the bus takes it soon.
    pub async fn farewell(mut self) {
        self.guests.clear();
        let told = async { while self.hosting.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, told).await;
    }
}

fn is_ours(interface: &str) -> bool {
    interface == "org.freedesktop.DBus.Peer" || interface == "org.freedesktop.DBus.Introspectable"
}

/// What tells this installation from others, as D-Bus wants it told.
fn machine_id() -> Result<String, Denial> {
    let read = std::fs::read_to_string("/etc/machine-id");
    read.map(|id| id.trim().to_owned()).map_err(|_| Denial::unknown("Property", "machine id"))
}
