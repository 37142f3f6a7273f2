//! Routes each message from the bus to a client task.
//!
//! Owns the list of clients and the limits on queued calls: their number for each client, and their total
//! size. A call over a limit gets an error at once. The dispatcher never waits for a client or for a reply of
//! the bus, since that reply would be queued after the current message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use wattspan_client::protocol::MethodError;
use zbus::Message;
use zbus::message::Type;

use super::bus_client;
use super::capped_socket::is_truncated;
use super::context::{DbusContext, PendingCall};
use super::credentials;
use super::dbus_error::DbusError;
use super::interface;
use super::names::OBJECT_PATH;

/// Limit of clients. Each has a match rule, of which a bus allows 512.
pub const MAX_CLIENTS: usize = 448;

/// Queued calls of one client: half of the replies that the system bus allows one client to have outstanding.
const MAX_QUEUED_CALLS: usize = 64;

/// Total size of the calls without a reply yet.
const MAX_PENDING_BYTES: usize = 8 << 20;

/// How long the last replies may take at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub struct DbusDispatcher {
    context: Arc<DbusContext>,
    clients: HashMap<String, mpsc::Sender<PendingCall>>,
    client_tasks: JoinSet<()>,
    memory_budget: Arc<Semaphore>,
}

impl DbusDispatcher {
    pub fn new(context: Arc<DbusContext>) -> Self {
        let memory_budget = Arc::new(Semaphore::new(MAX_PENDING_BYTES));
        Self { context, clients: HashMap::new(), client_tasks: JoinSet::new(), memory_budget }
    }

    pub async fn dispatch(&mut self, message: Message) {
        while self.client_tasks.try_join_next().is_some() {}
        match message.message_type() {
            Type::MethodCall => {
                if let Err(error) = self.handle_call(&message).await {
                    self.context.reply_error(&message, &error).await;
                }
            }
            Type::Signal => {
                if let Some(name) = credentials::disconnected_name(&message) {
                    self.clients.remove(&name);
                }
            }
            _ => {}
        }
    }

    /// Replies to what needs no service, and queues everything else for the client's task.
    async fn handle_call(&mut self, message: &Message) -> Result<(), DbusError> {
        let header = message.header();
        let path = header.path().map(|path| path.as_str()).unwrap_or_default();
        let interface = header.interface().map(|interface| interface.as_str());
        let member = header.member().map(|member| member.as_str()).unwrap_or_default();
        match (interface, member) {
            (Some("org.freedesktop.DBus.Peer"), "Ping") => self.context.reply(message, &()).await,
            (Some("org.freedesktop.DBus.Peer"), "GetMachineId") => {
                self.context.reply(message, &machine_id()?).await;
            }
            (Some("org.freedesktop.DBus.Introspectable"), "Introspect") => {
                let text = interface::describe(path).ok_or_else(|| DbusError::unknown("Object", path))?;
                self.context.reply(message, &text).await;
            }
            _ if path != OBJECT_PATH => return Err(DbusError::unknown("Object", path)),
            _ if bus_client::is_client_method(interface, member) => self.enqueue(message)?,
            (Some(interface), _) if !is_standard_interface(interface) => {
                return Err(DbusError::unknown("Interface", interface));
            }
            _ => return Err(DbusError::unknown("Method", member)),
        }
        Ok(())
    }

    fn enqueue(&mut self, message: &Message) -> Result<(), DbusError> {
        if is_truncated(message) {
            return Err(DbusError::oversized(self.context.max_message_bytes));
        }
        let header = message.header();
        let Some(sender) = header.sender() else {
            return Err(DbusError::unknown_caller("the message has no sender"));
        };
        let bytes = u32::try_from(message.data().len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.memory_budget).try_acquire_many_owned(bytes);
        let permit =
            permit.map_err(|_| DbusError::limits_exceeded("too many queued calls; try again later"))?;
        let call = PendingCall { message: message.clone(), _memory_permit: Arc::new(permit) };
        match self.client_queue(sender.as_str())?.try_send(call) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(DbusError::limits_exceeded("too many of your calls are queued; wait for their replies"))
            }
            // The client task ended between the check of the queue and this send.
            Err(mpsc::error::TrySendError::Closed(_)) => Err(DbusError::no_reply()),
        }
    }

    /// The queue of a client. Starts a task if there is none, or if the service closed the last connection.
    fn client_queue(&mut self, name: &str) -> Result<&mpsc::Sender<PendingCall>, DbusError> {
        if self.clients.get(name).is_none_or(mpsc::Sender::is_closed) {
            if self.client_tasks.len() >= MAX_CLIENTS {
                self.clients.retain(|_, sender| !sender.is_closed());
                let (quota, limit) = ("clients on the bus".to_owned(), MAX_CLIENTS as u64);
                return Err(DbusError::from(&MethodError::QuotaExceeded { quota, limit }));
            }
            let (sender, calls) = mpsc::channel(MAX_QUEUED_CALLS);
            self.client_tasks.spawn(bus_client::serve_client(
                Arc::clone(&self.context),
                name.to_owned(),
                calls,
            ));
            self.clients.insert(name.to_owned(), sender);
        }
        self.clients.get(name).ok_or_else(DbusError::no_reply)
    }

    /// Accepts no more calls. Sends the outstanding replies, for at most `DRAIN_TIMEOUT`.
    pub async fn drain(mut self) {
        self.clients.clear();
        let finished = async { while self.client_tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, finished).await;
    }
}

fn is_standard_interface(interface: &str) -> bool {
    interface == "org.freedesktop.DBus.Peer" || interface == "org.freedesktop.DBus.Introspectable"
}

/// The machine id that `org.freedesktop.DBus.Peer.GetMachineId` returns.
fn machine_id() -> Result<String, DbusError> {
    let read = std::fs::read_to_string("/etc/machine-id");
    read.map(|id| id.trim().to_owned()).map_err(|_| DbusError::unknown("Property", "machine id"))
}
