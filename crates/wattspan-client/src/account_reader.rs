//! Reads stored accounts in the order of their numbers, one call ahead: while the caller uses the accounts of a reply, the
//! daemon prepares the next one.
//!
//! Invariant: the call that was sent ahead is a guess. Its reply is used for exactly this call, and discarded otherwise.

use std::fmt;
use std::sync::MutexGuard;

use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::client_error::ClientError;
use super::varlink_connection::VarlinkConnection;
use crate::account::Account;
use crate::protocol::{Call, IncomingReply, ListSpans, SpanAccounts};

/// A reader of stored accounts. It locks the connection: other calls of the client wait until it is dropped.
#[derive(Debug)]
pub struct AccountReader<'client> {
    connection: MutexGuard<'client, VarlinkConnection>,
    /// The call whose reply was not received.
    sent_ahead: Option<ListSpans>,
}

impl<'client> AccountReader<'client> {
    pub(super) fn new(connection: MutexGuard<'client, VarlinkConnection>) -> Self {
        Self { connection, sent_ahead: None }
    }

    /// Calls ListSpans and passes each account on. The returned reply has no accounts. The call that continues the list is sent
    /// before the accounts are parsed.
    ///
    /// # Errors
    /// As for [`Client::call`](super::Client::call). Accounts may have been passed on before an invalid reply was found to be one.
    pub fn read(
        &mut self,
        call: &ListSpans,
        take: &mut dyn FnMut(Account),
    ) -> Result<SpanAccounts, ClientError> {
        if self.sent_ahead.as_ref() != Some(call) {
            self.discard_reply()?;
            self.connection.send(&Call::new(call.clone()))?;
        }
        self.sent_ahead = None;
        let received = self.connection.receive_message()?;
        if let Some(next) = following_call(call, self.connection.message(received.clone())) {
            self.connection.send(&Call::new(next.clone()))?;
            self.sent_ahead = Some(next);
        }
        parse_reply(self.connection.message(received), take)
    }

    fn discard_reply(&mut self) -> Result<(), ClientError> {
        match self.sent_ahead.take() {
            Some(_) => self.connection.receive_message().map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for AccountReader<'_> {
    fn drop(&mut self) {
        // A reply that stays unread would be taken for that of a later call. A failure leaves the connection desynchronized,
        // which the next call reports.
        let _ = self.discard_reply();
    }
}

/// The call that continues the list of a reply, if its end has the form that the daemon writes. The accounts are not parsed:
/// within a text, a quotation mark has a backslash before it.
fn following_call(call: &ListSpans, message: &[u8]) -> Option<ListSpans> {
    #[derive(Deserialize)]
    struct ListEnd {
        after: i64,
        at_end: bool,
        database: String,
    }
    let accounts_end = memchr::memmem::rfind(message, b"],\"after\":")?;
    let fields = message.get(accounts_end + 2..)?.strip_suffix(b"}")?;
    let end: ListEnd = serde_json::from_slice(&[b"{", fields].concat()).ok()?;
    let follows = || ListSpans { after: Some(end.after), database: Some(end.database), ..call.clone() };
    (!end.at_end && Some(end.after) > call.after).then(follows)
}

fn parse_reply(message: &[u8], take: &mut dyn FnMut(Account)) -> Result<SpanAccounts, ClientError> {
    let invalid = |error: &dyn fmt::Display| ClientError::InvalidReply(error.to_string());
    if !message.starts_with(b"{\"parameters\":") {
        let reply = IncomingReply::parse(message).map_err(|error| invalid(&error))?;
        return match reply.into_result::<SpanAccounts>() {
            Ok(Ok(mut reply)) => {
                reply.accounts.drain(..).for_each(take);
                Ok(reply)
            }
            Ok(Err(method_error)) => Err(ClientError::Method(method_error)),
            Err(error) => Err(ClientError::from_unknown_reply(message, &error.to_string())),
        };
    }
    let text = str::from_utf8(message).map_err(|error| invalid(&error))?;
    let mut parser = serde_json::Deserializer::from_str(text);
    let reply = EnvelopeSeed(take).deserialize(&mut parser).map_err(|error| invalid(&error))?;
    parser.end().map_err(|error| invalid(&error))?;
    Ok(reply)
}

/// The envelope of a reply that is no error.
struct EnvelopeSeed<'a>(&'a mut dyn FnMut(Account));

impl<'de> DeserializeSeed<'de> for EnvelopeSeed<'_> {
    type Value = SpanAccounts;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<SpanAccounts, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed<'_> {
    type Value = SpanAccounts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reply")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<SpanAccounts, A::Error> {
        let mut reply = SpanAccounts::of_accounts(Vec::new());
        while let Some(name) = fields.next_key::<&str>()? {
            match name {
                "parameters" => reply = fields.next_value_seed(ParametersSeed(&mut *self.0))?,
                "error" => return Err(serde::de::Error::custom("an error after parameters")),
                _ => fields.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(reply)
    }
}

/// The parameters, whose accounts are passed on one by one.
struct ParametersSeed<'a>(&'a mut dyn FnMut(Account));

impl<'de> DeserializeSeed<'de> for ParametersSeed<'_> {
    type Value = SpanAccounts;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<SpanAccounts, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ParametersSeed<'_> {
    type Value = SpanAccounts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of accounts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<SpanAccounts, A::Error> {
        let mut reply = SpanAccounts::of_accounts(Vec::new());
        while let Some(name) = fields.next_key::<&str>()? {
            match name {
                "accounts" => fields.next_value_seed(AccountsSeed(&mut *self.0))?,
                "before" => reply.before = fields.next_value()?,
                "after" => reply.after = fields.next_value()?,
                "at_end" => reply.at_end = fields.next_value()?,
                "gaps" => reply.gaps = fields.next_value()?,
                "database" => reply.database = fields.next_value()?,
                _ => fields.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(reply)
    }
}

struct AccountsSeed<'a>(&'a mut dyn FnMut(Account));

impl<'de> DeserializeSeed<'de> for AccountsSeed<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AccountsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("accounts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut accounts: A) -> Result<(), A::Error> {
        while let Some(account) = accounts.next_element()? {
            (self.0)(account);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::Client;
    use crate::account::Gap;
    use crate::protocol::MethodError;

    fn account(number: u64, attribute: &str) -> String {
        let attribute = serde_json::to_string(attribute).unwrap();
        format!(
            r#"{{"span":"s{number}","name":"n","attributes":{{"a":{attribute}}},"state":"settled","uid":1,"opened_ns":1,
            "closed_ns":2,"moved_ns":0,"opened_unix_ns":3,"weight":1.0,"peak_concurrency":1,"phases":[],"number":{number},
            "domains":[{{"domain":"gpu-0","grade":"measured","share_uj":5,"unknown_ns":0}}]}}"#
        )
    }

    fn page(accounts: &[String], end: &str) -> String {
        format!(r#"{{"parameters":{{"accounts":[{}],{end}}}}}"#, accounts.join(","))
    }

    /// Answers the n-th call with the n-th reply; returns the parameters of the calls.
    fn daemon(replies: Vec<String>) -> (Client, JoinHandle<Vec<ListSpans>>) {
        let (client_end, mut daemon_end) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut reader = BufReader::new(daemon_end.try_clone().unwrap());
            let mut calls = Vec::new();
            for reply in replies {
                let mut message = Vec::new();
                reader.read_until(0, &mut message).unwrap();
                message.pop();
                let call: serde_json::Value = serde_json::from_slice(&message).unwrap();
                calls.push(serde_json::from_value(call["parameters"].clone()).unwrap());
                daemon_end.write_all(&[reply.as_bytes(), b"\0"].concat()).unwrap();
            }
            calls
        });
        (Client::from_stream(client_end).unwrap(), thread)
    }

    fn after(number: i64) -> ListSpans {
        ListSpans { after: Some(number), limit: Some(9), database: Some("d".into()), ..ListSpans::default() }
    }

    fn read(
        reader: &mut AccountReader<'_>,
        call: &ListSpans,
    ) -> Result<(Vec<u64>, SpanAccounts), ClientError> {
        let mut numbers = Vec::new();
        let reply = reader.read(call, &mut |account| numbers.extend(account.number))?;
        Ok((numbers, reply))
    }

    #[test]
    fn the_next_call_is_sent_before_its_accounts_are_wanted_and_its_reply_is_used_for_it() {
        // A text that looks like the end of the accounts.
        let first = page(
            &[account(1, "],\"after\":7,"), account(2, "")],
            r#""after":2,"at_end":false,"database":"d""#,
        );
        let gaps = r#""gaps":[{"first":3,"last":3,"reason":"deleted"}]"#;
        let second = page(&[account(4, "")], &format!(r#""after":4,"at_end":true,{gaps},"database":"d""#));
        let (client, daemon) = daemon(vec![first, second]);
        let mut reader = client.account_reader();
        let (numbers, reply) = read(&mut reader, &after(0)).unwrap();
        assert_eq!((numbers, reply.after, reply.accounts.len()), (vec![1, 2], Some(2), 0));
        // The daemon has sent both replies, for one call of this reader.
        assert_eq!(daemon.join().unwrap(), [after(0), after(2)]);
        let (numbers, reply) = read(&mut reader, &after(2)).unwrap();
        assert_eq!((numbers, reply.at_end), (vec![4], Some(true)));
        assert!(matches!(&reply.gaps.unwrap()[..], [Gap { first: Some(3), .. }]));
    }

    #[test]
    fn the_reply_of_another_call_than_the_one_sent_ahead_is_not_used() {
        let reply = |number, at_end: bool| {
            page(&[account(number, "")], &format!(r#""after":{number},"at_end":{at_end},"database":"d""#))
        };
        let (client, daemon) =
            daemon(vec![reply(1, false), reply(2, false), reply(5, false), reply(6, true)]);
        let mut reader = client.account_reader();
        assert_eq!(read(&mut reader, &after(0)).unwrap().0, [1]);
        assert_eq!(read(&mut reader, &after(4)).unwrap().0, [5]);
        // The reply that was not used is not that of the next call.
        drop(reader);
        assert_eq!(daemon.join().unwrap(), [after(0), after(1), after(4), after(5)]);
        assert!(matches!(client.info().unwrap_err(), ClientError::ConnectionClosed));
    }

    #[test]
    fn an_error_is_that_of_the_method_and_other_forms_of_a_reply_are_read() {
        let error = r#"{"error":"org.wattspan.Meter.NoSuchSpan","parameters":{"span":"a"}}"#.to_owned();
        let other = format!(
            r#"{{"parameters":{{"at_end":true,"new":[1],"after":1,"accounts":[{}]}}}}"#,
            account(1, "")
        );
        let continued = format!(r#"{{"continues":false,{}"#, &other[1..]);
        let (client, _daemon) =
            daemon(vec![error, other, continued, "{\"parameters\":{\"accounts\":[{}]}}".into()]);
        let mut reader = client.account_reader();
        let error = read(&mut reader, &after(0)).unwrap_err();
        assert!(matches!(error, ClientError::Method(MethodError::NoSuchSpan { .. })), "{error}");
        for _ in 0..2 {
            let (numbers, reply) = read(&mut reader, &after(0)).unwrap();
            assert_eq!((numbers, reply.after), (vec![1], Some(1)));
        }
        assert!(matches!(read(&mut reader, &after(0)).unwrap_err(), ClientError::InvalidReply(_)));
    }
}
