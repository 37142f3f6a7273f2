//! The largest number of open connections, and the reply to those beyond it.
//!
//! Where the limit is reached, further connections wait in the kernel's queue. If no connection has ended for the wait
//! timeout, they are accepted, get status 503 and are closed, until one ends. Invariant: every served connection holds a
//! permit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::listener::{AcceptedConnection, ProxyListener};

/// The most connections that are accepted at a time, before those that are open are served again.
const MAX_BATCH: usize = 64;

/// The most refused connections that are open until the client has read the reply.
const MAX_CLOSING: usize = 256;

/// How long a refused connection may stay open.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub struct ConnectionLimit {
    permits: Arc<Semaphore>,
    closing: Arc<Semaphore>,
    wait_timeout: Duration,
    refusal: Arc<[u8]>,
}

/// The reply to a refused connection.
fn encode_refusal(reason: &str) -> Vec<u8> {
    let length = reason.len() + 1;
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
Content-Length: {length}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{reason}\n"
    )
    .into_bytes()
}

impl ConnectionLimit {
    /// `refusal` is the text of the reply to further connections.
    pub fn new(max_connections: usize, wait_timeout: Duration, refusal: &str) -> Self {
        ConnectionLimit {
            permits: Arc::new(Semaphore::new(max_connections)),
            closing: Arc::new(Semaphore::new(MAX_CLOSING)),
            wait_timeout,
            refusal: encode_refusal(refusal).into(),
        }
    }

    /// Accepts the connections that wait, as far as there are permits for them.
    ///
    /// # Errors
    /// The process has no free descriptor.
    pub async fn accept_batch(
        &self,
        listener: &ProxyListener,
    ) -> io::Result<Vec<(AcceptedConnection, OwnedSemaphorePermit)>> {
        let mut reserved = vec![self.wait_for_permit(listener).await?];
        while reserved.len() < MAX_BATCH
            && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
        {
            reserved.push(permit);
        }
        Ok(listener.accept_batch(reserved.len()).await?.into_iter().zip(reserved).collect())
    }

    /// Waits until a connection may be accepted; refuses those that wait for longer than the timeout.
    async fn wait_for_permit(&self, listener: &ProxyListener) -> io::Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).acquire_owned();
        tokio::pin!(permit);
        if let Ok(permit) = tokio::time::timeout(self.wait_timeout, permit.as_mut()).await {
            return permit.map_err(io::Error::other);
        }
        loop {
            tokio::select! {
                biased;
                permit = permit.as_mut() => return permit.map_err(io::Error::other),
                batch = listener.accept_batch(MAX_BATCH) => {
                    batch?.into_iter().for_each(|connection| self.refuse(connection));
                }
            }
        }
    }

    /// Sends the refusal and closes the connection. The client's request is read, since the close of a socket with
    /// unread input would reset the connection before the client has read the reply.
    fn refuse(&self, connection: AcceptedConnection) {
        let Ok(closing) = Arc::clone(&self.closing).try_acquire_owned() else { return };
        let refusal = Arc::clone(&self.refusal);
        tokio::spawn(async move {
            let (mut reader, mut writer) = connection.into_split();
            let exchange = async {
                writer.write_all(&refusal).await?;
                writer.shutdown().await?;
                let mut input = [0; 4096];
                while reader.read(&mut input).await? > 0 {}
                io::Result::Ok(())
            };
            // A client that has gone, or does not read, loses the reply.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, exchange).await;
            drop(closing);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_states_the_length_of_its_body() {
        let text = String::from_utf8(encode_refusal("all are in use")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        assert_eq!(body, "all are in use\n");
    }
}
