//! The envelopes of calls and replies, with the fields that Varlink defines.
//!
//! Parameters stay JSON text until the type of the method parses them. An unknown field of an envelope is ignored, as
//! Varlink requires; an unknown parameter is an error.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::interface::encode_message;
use super::method_error::{MethodError, ParseReplyError};
use super::methods::Method;

/// A call as the client sends it; one JSON object on the wire.
#[derive(Debug, Clone, Serialize)]
pub struct Call<M> {
    /// Interface and method, joined by a dot.
    pub method: &'static str,
    /// A type of the contract, such as [`OpenSpan`](super::OpenSpan).
    pub parameters: M,
    /// The receiver sends no reply and no error.
    #[serde(skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// The caller accepts several replies.
    #[serde(skip_serializing_if = "is_false")]
    pub more: bool,
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl<M: Method> Call<M> {
    /// A call with one reply.
    pub fn new(parameters: M) -> Self {
        Self { method: M::NAME, parameters, oneway: false, more: false }
    }

    /// A call without a reply.
    pub fn oneway(parameters: M) -> Self {
        Self { oneway: true, ..Self::new(parameters) }
    }

    /// A call with a stream of replies.
    pub fn more(parameters: M) -> Self {
        Self { more: true, ..Self::new(parameters) }
    }

    /// Appends the message and its terminator to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_message(self, out);
    }
}

/// An incoming call; borrows from the message.
#[derive(Debug, Deserialize)]
pub struct IncomingCall<'a> {
    /// Interface and method, joined by a dot.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// The method's parameters as JSON text; absent means none.
    #[serde(borrow, default)]
    pub parameters: Option<&'a RawValue>,
    /// The caller expects no reply.
    #[serde(default)]
    pub oneway: Option<bool>,
    /// The caller accepts several replies.
    #[serde(default)]
    pub more: Option<bool>,
    /// The caller requests another protocol on the connection; not supported.
    #[serde(default)]
    pub upgrade: Option<bool>,
}

/// An outgoing reply; a [`MethodError`] needs no envelope.
#[derive(Debug, Clone, Serialize)]
pub struct MethodReply<T> {
    /// The [`Method::Reply`] of the method.
    pub parameters: T,
    /// More replies to the same call follow.
    #[serde(skip_serializing_if = "is_false")]
    pub continues: bool,
}

impl<T: Serialize> MethodReply<T> {
    /// The only or last reply.
    pub fn last(parameters: T) -> Self {
        Self { parameters, continues: false }
    }

    /// A reply that others follow.
    pub fn continued(parameters: T) -> Self {
        Self { parameters, continues: true }
    }

    /// Appends the message and its terminator to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_message(self, out);
    }
}

/// An incoming reply; borrows from the message.
#[derive(Debug, Deserialize)]
pub struct IncomingReply<'a> {
    /// The method's result or the error's parameters as JSON text.
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    /// The name of the error, if the reply is one.
    #[serde(borrow, default)]
    error: Option<&'a str>,
    /// More replies to the same call follow.
    #[serde(default)]
    continues: Option<bool>,
}

impl<'a> IncomingReply<'a> {
    /// Parses a message without its terminator.
    pub fn parse(message: &'a [u8]) -> Result<Self, ParseReplyError> {
        Ok(serde_json::from_slice(message)?)
    }

    /// Whether more replies to the same call follow.
    pub fn continues(&self) -> bool {
        self.continues.unwrap_or(false)
    }

    /// The method's result; a [`MethodError`] is the inner error.
    pub fn into_result<T: DeserializeOwned>(self) -> Result<Result<T, MethodError>, ParseReplyError> {
        let parameters = self.parameters.map_or("{}", RawValue::get);
        match self.error {
            Some(error) => MethodError::parse(error, parameters).map(Err),
            None => Ok(Ok(serde_json::from_str(parameters)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EmptyReply, MarkPhase, OpenSpan, OpenedSpan};
    use super::*;

    #[test]
    fn a_call_round_trips() {
        let mut out = Vec::new();
        Call::oneway(MarkPhase { span: "a".into(), phase: "decode".into(), at_ns: Some(7) }).encode(&mut out);
        assert_eq!(out.pop(), Some(super::super::MESSAGE_TERMINATOR));
        let incoming: IncomingCall = serde_json::from_slice(&out).unwrap();
        assert_eq!(incoming.method, "org.wattspan.Meter.MarkPhase");
        assert_eq!((incoming.oneway, incoming.more), (Some(true), None));
        let mark: MarkPhase = serde_json::from_str(incoming.parameters.unwrap().get()).unwrap();
        assert_eq!(mark, MarkPhase { span: "a".into(), phase: "decode".into(), at_ns: Some(7) });
    }

    #[test]
    fn an_unknown_parameter_is_rejected() {
        let error = serde_json::from_str::<OpenSpan>(r#"{"wieght":2}"#).unwrap_err();
        assert!(error.to_string().contains("wieght"), "{error}");
    }

    #[test]
    fn a_reply_is_a_result_or_an_error() {
        let mut out = Vec::new();
        MethodReply::last(OpenedSpan { span: "a".into() }).encode(&mut out);
        let opened: OpenedSpan =
            IncomingReply::parse(&out[..out.len() - 1]).unwrap().into_result().unwrap().unwrap();
        assert_eq!(opened.span, "a");
        out.clear();
        MethodError::NoSuchSpan { span: "b".into() }.encode(&mut out);
        let reply = IncomingReply::parse(&out[..out.len() - 1]).unwrap();
        let result = reply.into_result::<EmptyReply>().unwrap();
        assert_eq!(result, Err(MethodError::NoSuchSpan { span: "b".into() }));
    }
}
