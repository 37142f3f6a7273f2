//! A message to the daemon's socket: the envelope, and the parameters of every method.

use serde_json::{Value, json};
use wattspan::server::fuzz_entry;
use wattspan_client::protocol::{MethodError, MethodName};

use super::is_same_json;

/// The parameters are those that the contract's types accept, and an error names one.
pub fn check(message: &[u8]) {
    let Some((method, request)) = fuzz_entry::call(message) else { return };
    let Some(request) = request else {
        assert_eq!(MethodName::parse(&method), None);
        return;
    };
    match request {
        Ok(request) => {
            let parameters = serde_json::to_value(&request).expect("a request is plain data");
            let again = json!({ "method": method, "parameters": parameters }).to_string();
            let again = fuzz_entry::call(again.as_bytes()).and_then(|(_, request)| request);
            let again = again.expect("a call").expect("its parameters were accepted before");
            let again: Value = serde_json::to_value(&again).expect("a request is plain data");
            assert!(is_same_json(&parameters, &again), "{method}: {parameters} became {again}");
        }
        Err(MethodError::InvalidParameter { parameter }) => {
            // A name of the contract, or one in the message, where an escape is at least as long as its character.
            assert!(parameter.len() <= message.len().max(32), "{parameter}");
        }
        Err(error) => panic!("no error of a parser: {error}"),
    }
}
