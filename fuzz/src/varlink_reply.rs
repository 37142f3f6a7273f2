//! A message from the daemon, as its clients read it: the envelope, every method's reply, and errors.

use wattspan_client::protocol::{
    CancelSpan, CloseSpan, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan,
    IncomingReply, ListSpans, MarkPhase, Method, MethodReply, OpenSpan, ReadWindow, Reload, SetWeight,
    SumSpans, WatchDomains, WatchSpans,
};

use super::{first_byte, is_same_json};

/// A reply reads back as it was written.
pub fn check(bytes: &[u8]) {
    let (selector, message) = first_byte(bytes);
    let readers: [fn(&[u8]); 16] = [
        check_reply::<GetInfo>,
        check_reply::<OpenSpan>,
        check_reply::<MarkPhase>,
        check_reply::<SetWeight>,
        check_reply::<CloseSpan>,
        check_reply::<CancelSpan>,
        check_reply::<GetSpan>,
        check_reply::<ListSpans>,
        check_reply::<SumSpans>,
        check_reply::<WatchSpans>,
        check_reply::<WatchDomains>,
        check_reply::<ReadWindow>,
        check_reply::<GetBalance>,
        check_reply::<Reload>,
        check_reply::<GetServiceInfo>,
        check_reply::<GetInterfaceDescription>,
    ];
    // Of a letter in a seed the low bits decide.
    readers[usize::from(selector) % readers.len()](message);
}

fn read<M: Method>(message: &[u8]) -> Option<Result<M::Reply, String>> {
    let result = IncomingReply::parse(message).ok()?.into_result::<M::Reply>().ok()?;
    Some(result.map_err(|error| {
        let mut out = Vec::new();
        error.encode(&mut out);
        let again = IncomingReply::parse(&out[..out.len() - 1]).expect("an error is a reply");
        assert_eq!(again.into_result::<M::Reply>().ok().and_then(Result::err), Some(error.clone()));
        error.to_string()
    }))
}

fn check_reply<M: Method>(message: &[u8]) {
    let Some(Ok(reply)) = read::<M>(message) else { return };
    let value = serde_json::to_value(&reply).expect("a reply is plain data");
    let mut out = Vec::new();
    MethodReply::last(reply).encode(&mut out);
    assert_eq!(out.iter().filter(|byte| **byte == 0).count(), 1, "one message has one terminator");
    let again = read::<M>(&out[..out.len() - 1]).expect("a reply").expect("no error");
    let again = serde_json::to_value(&again).expect("a reply is plain data");
    assert!(is_same_json(&value, &again), "{value} became {again}");
}
