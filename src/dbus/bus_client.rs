//! One client on the bus: its calls, in order, and the replies.
//!
//! Owns the client's connection to the service from the query of its credentials until it leaves the bus. Then the
//! service abandons the client's open spans, as for any connection. A call is passed on before the next one is taken; a
//! reply that comes later delays no other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use wattspan_client::protocol::{GetBalance, GetInfo, MethodName, Reload, SpanAccounts};
use zbus::message::{Body, Flags};

use super::context::{DbusContext, PendingCall};
use super::credentials;
use super::dbus_error::DbusError;
use super::interface::{DbusMethod, DbusProperty, METHODS, find_method, find_property, properties_of};
use super::names::{INTERFACE, PROPERTIES_INTERFACE};
use super::polkit;
use super::service_connection::{PendingResult, ServiceConnection, wait};
use super::variant_writer::to_dict;
use crate::service::{Reply, Request};

/// Outstanding replies of one client. The sum with the calls in its queue is what the system bus allows.
const MAX_PENDING_REPLIES: usize = 64;

/// Outstanding calls of one client that may search the store, whose results may be large.
const MAX_PENDING_QUERIES: usize = 4;

/// Serves the client with this unique name until the queue of its calls is closed.
pub async fn serve_client(context: Arc<DbusContext>, name: String, mut calls: mpsc::Receiver<PendingCall>) {
    let connected = match credentials::watch_name(&context.bus, &name).await {
        Ok(()) => credentials::query_credentials(&context.bus, &name).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok((credentials, pid)) => {
            let connection = ServiceConnection(context.service.connect(credentials, pid));
            BusClient::new(Arc::clone(&context), connection).forward_calls(&mut calls).await;
        }
        Err(error) => {
            calls.close();
            while let Some(call) = calls.recv().await {
                context.reply_error(&call.message, &error).await;
            }
        }
    }
    credentials::unwatch_name(&context.bus, &name).await;
}

/// A client whose credentials are known.
struct BusClient {
    context: Arc<DbusContext>,
    connection: ServiceConnection,
    /// The calls whose replies come later.
    pending: JoinSet<()>,
    queries: Arc<Semaphore>,
    /// Cancelled when the client leaves.
    polkit_tasks: JoinSet<()>,
}

/// A call that the service performs or has performed.
enum RunningCall {
    Method(PendingResult),
    Property(&'static DbusProperty, PendingResult),
    AllProperties { info: PendingResult, balance: PendingResult },
}

impl BusClient {
    fn new(context: Arc<DbusContext>, connection: ServiceConnection) -> Self {
        let queries = Arc::new(Semaphore::new(MAX_PENDING_QUERIES));
        Self { context, connection, pending: JoinSet::new(), queries, polkit_tasks: JoinSet::new() }
    }

    async fn forward_calls(mut self, calls: &mut mpsc::Receiver<PendingCall>) {
        while let Some(call) = calls.recv().await {
            while self.pending.try_join_next().is_some() {}
            if self.pending.len() >= MAX_PENDING_REPLIES {
                self.pending.join_next().await;
            }
            if let Err(error) = self.forward_call(&call).await {
                self.context.reply_error(&call.message, &error).await;
            }
        }
        // The service abandons the open spans. The remaining replies are forwarded.
        drop(self.connection);
        while self.pending.join_next().await.is_some() {}
    }

    /// Passes a call on. An error is the reply.
    async fn forward_call(&mut self, call: &PendingCall) -> Result<(), DbusError> {
        let header = call.message.header();
        let body = call.message.body();
        let name = header.member().map(|name| name.as_str()).unwrap_or_default();
        match header.interface().map(|interface| interface.as_str()) {
            Some(PROPERTIES_INTERFACE) => {
                let running = self.call_properties(name, &body)?;
                self.reply_when_done(call, running, None).await;
            }
            Some(INTERFACE) | None => {
                let method = find_method(name).ok_or_else(|| DbusError::unknown("Method", name))?;
                self.call_method(call, method, &body).await?;
            }
            Some(other) => return Err(DbusError::unknown("Interface", other)),
        }
        Ok(())
    }

    async fn call_method(
        &mut self,
        call: &PendingCall,
        method: &DbusMethod,
        body: &Body,
    ) -> Result<(), DbusError> {
        let request = method.parse_request(body)?;
        if let Ok(request) = &request {
            check_length(method.method, request, call.message.data().len(), self.context.max_message_bytes)?;
        }
        // The reply decides whether polkit is asked, so Reload is never oneway.
        if method.method == MethodName::Reload {
            self.reload(call, self.connection.send(method.method, request, false)).await;
            return Ok(());
        }
        let permit = match method.method {
            MethodName::GetSpan | MethodName::ListSpans | MethodName::SumSpans => {
                Arc::clone(&self.queries).acquire_owned().await.ok()
            }
            _ => None,
        };
        let oneway = !call.is_reply_expected();
        let result = self.connection.send(method.method, request, oneway);
        // Also a call without a reply counts, and keeps the memory of its message reserved, until it is performed.
        self.reply_when_done(call, RunningCall::Method(result), permit).await;
        Ok(())
    }

    /// Performs a call of `org.freedesktop.DBus.Properties`.
    fn call_properties(&self, name: &str, body: &Body) -> Result<RunningCall, DbusError> {
        let strings = |_| DbusError::invalid_args(format!("{name} takes an interface and a property"));
        match name {
            "Get" => {
                let (interface, property_name): (&str, &str) = body.deserialize().map_err(strings)?;
                check_interface(interface)?;
                let property = find_property(property_name)
                    .ok_or_else(|| DbusError::unknown("Property", property_name))?;
                Ok(RunningCall::Property(property, self.get(property.method)))
            }
            "GetAll" => {
                let interface: &str = body.deserialize().map_err(strings)?;
                check_interface(interface)?;
                let info = self.get(MethodName::GetInfo);
                Ok(RunningCall::AllProperties { info, balance: self.get(MethodName::GetBalance) })
            }
            "Set" => Err(DbusError::read_only()),
            _ => Err(DbusError::unknown("Method", name)),
        }
    }

    /// Calls a method whose reply contains properties.
    fn get(&self, method: MethodName) -> PendingResult {
        let request = match method {
            MethodName::GetBalance => Request::GetBalance(GetBalance {}),
            _ => Request::GetInfo(GetInfo {}),
        };
        self.connection.send(method, Ok(request), false)
    }

    /// Replies now if the result is there, else from a task.
    async fn reply_when_done(
        &mut self,
        call: &PendingCall,
        running: RunningCall,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let (context, call) = (Arc::clone(&self.context), call.clone());
        let mut reply: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let _permit = permit;
            reply_to_call(&context, &call, running).await;
        });
        if std::future::poll_fn(|cx| Poll::Ready(reply.as_mut().poll(cx))).await.is_pending() {
            self.pending.spawn(reply);
        }
    }

    /// Replies to a reload; if access is denied, polkit is asked.
    async fn reload(&mut self, call: &PendingCall, result: PendingResult) {
        match wait(result).await {
            Err(error) if error.is_access_denied() => {
                while self.polkit_tasks.try_join_next().is_some() {}
                if self.polkit_tasks.is_empty() {
                    self.polkit_tasks.spawn(reload_with_polkit(Arc::clone(&self.context), call.clone()));
                } else {
                    let error = DbusError::limits_exceeded("your previous reload still awaits polkit");
                    self.context.reply_error(&call.message, &error).await;
                }
            }
            result => send_reply(&self.context, call, result).await,
        }
    }
}

/// Checks the length that the request has on the socket, where the limit is that of a message.
fn check_length(
    method: MethodName,
    request: &Request,
    message_bytes: usize,
    max_bytes: usize,
) -> Result<(), DbusError> {
    /// JSON writes a byte as at most six; and the rest of a call.
    const MAX_BYTES_OF_ONE: usize = 6;
    const ENVELOPE_BYTES: usize = 128;
    if message_bytes * MAX_BYTES_OF_ONE + ENVELOPE_BYTES <= max_bytes {
        return Ok(());
    }
    #[derive(Serialize)]
    struct SocketCall<'a> {
        method: &'a str,
        parameters: &'a Request,
    }
    let call = SocketCall { method: method.as_str(), parameters: request };
    let is_short = serde_json::to_vec(&call).is_ok_and(|bytes| bytes.len() < max_bytes);
    if is_short { Ok(()) } else { Err(DbusError::oversized(max_bytes)) }
}

fn check_interface(interface: &str) -> Result<(), DbusError> {
    match interface {
        INTERFACE | "" => Ok(()),
        other => Err(DbusError::unknown("Interface", other)),
    }
}

/// Whether a call is forwarded to the service. A call without an interface is, if the method name is known.
pub fn is_client_method(interface: Option<&str>, name: &str) -> bool {
    match interface {
        Some(INTERFACE | PROPERTIES_INTERFACE) => true,
        Some(_) => false,
        None => METHODS.iter().any(|method| method.name == name),
    }
}

async fn reply_to_call(context: &DbusContext, call: &PendingCall, running: RunningCall) {
    match running {
        RunningCall::Method(result) => send_reply(context, call, wait(result).await).await,
        RunningCall::Property(property, result) => {
            let value = wait(result).await.and_then(|reply| {
                let value = to_dict(&reply).remove(property.field);
                value.ok_or_else(|| DbusError::unknown("Property", property.name))
            });
            match value {
                Ok(value) => context.reply(&call.message, &value).await,
                Err(error) => context.reply_error(&call.message, &error).await,
            }
        }
        RunningCall::AllProperties { info, balance } => match wait(info).await {
            Ok(info) => {
                let mut all = properties_of(MethodName::GetInfo, to_dict(&info));
                // Omitted if access is denied.
                if let Ok(balance) = wait(balance).await {
                    all.extend(properties_of(MethodName::GetBalance, to_dict(&balance)));
                }
                context.reply(&call.message, &all).await;
            }
            Err(error) => context.reply_error(&call.message, &error).await,
        },
    }
}

/// Sends the reply of a method.
async fn send_reply(context: &DbusContext, call: &PendingCall, result: Result<Reply, DbusError>) {
    let message = &call.message;
    match result {
        Ok(Reply::Opened(opened)) => context.reply(message, &opened.span.as_str()).await,
        Ok(Reply::Account(reply)) => context.reply_dict(message, &reply.account).await,
        Ok(Reply::Accounts(list)) => reply_accounts(context, message, &list).await,
        Ok(Reply::Encoded(encoded)) => match Reply::decode_accounts(&encoded) {
            Some(list) => reply_accounts(context, message, &list).await,
            None => context.reply_error(message, &DbusError::no_reply()).await,
        },
        Ok(Reply::Balances(list)) => context.reply_dicts(message, &list.balance).await,
        Ok(Reply::Empty(_) | Reply::Reload(_)) => context.reply(message, &()).await,
        Ok(whole) => context.reply_dict(message, &whole).await,
        Err(error) => context.reply_error(message, &error).await,
    }
}

/// Sends a list of accounts: whole, with its position, to ListSpansAfter.
async fn reply_accounts(context: &DbusContext, message: &zbus::Message, list: &SpanAccounts) {
    let is_whole = message.header().member().is_some_and(|member| member.as_str() == "ListSpansAfter");
    if is_whole {
        context.reply_dict(message, list).await;
    } else {
        context.reply_dicts(message, &list.accounts).await;
    }
}

/// Reloads as the daemon if polkit authorizes the caller.
async fn reload_with_polkit(context: Arc<DbusContext>, call: PendingCall) {
    let header = call.message.header();
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let Some(caller) = header.sender() else { return };
    if let Err(reason) = polkit::check_authorization(&context.bus, caller.as_str(), interactive).await {
        return context.reply_error(&call.message, &DbusError::unauthorized(&reason)).await;
    }
    let connection = ServiceConnection(context.service.connect(credentials::own_credentials(), None));
    let result = connection.call(MethodName::Reload, Request::Reload(Reload {})).await;
    send_reply(&context, &call, result).await;
}
