//! A client's connection to the service: calls and replies as values.

use tokio::sync::oneshot;
use wattspan_client::protocol::{MethodError, MethodName};

use super::dbus_error::DbusError;
use crate::server::{ForwardedCall, ForwardedClient};
use crate::service::{MethodResult, Reply, Request};

/// A reply that may not have been sent yet.
pub type PendingResult = oneshot::Receiver<MethodResult>;

#[derive(Debug)]
pub struct ServiceConnection(pub ForwardedClient);

impl ServiceConnection {
    /// Calls a method; `request` may be an error, which the service answers after it has checked access. Calls are
    /// performed in order. Where the service is free, the reply is there at once.
    pub fn send(
        &self,
        method: MethodName,
        request: Result<Request, MethodError>,
        oneway: bool,
    ) -> PendingResult {
        let (sender, result) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.0.call(ForwardedCall { method, request, oneway, reply });
        result
    }

    /// Calls a method and waits for the reply.
    pub async fn call(&self, method: MethodName, request: Request) -> Result<Reply, DbusError> {
        wait(self.send(method, Ok(request), false)).await
    }
}

/// Waits for a reply.
pub async fn wait(result: PendingResult) -> Result<Reply, DbusError> {
    let result = result.await.map_err(|_| DbusError::no_reply())?;
    result.map_err(|error| DbusError::from(&error))
}
