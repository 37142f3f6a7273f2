//! Parsing of a call's parameters.
//!
//! Owns the name of the parameter that an `InvalidParameter` error states. Only JSON objects are accepted.

use serde_json::value::RawValue;

use wattspan_client::protocol::{IncomingCall, Method, MethodError};

pub fn parse_parameters<M: Method>(call: &IncomingCall) -> Result<M, MethodError> {
    let text = call.parameters.map_or("{}", RawValue::get);
    // serde would accept an array as the fields in their order. Varlink has named parameters only.
    if !text.starts_with('{') {
        return Err(MethodError::InvalidParameter { parameter: "parameters".into() });
    }
    serde_json::from_str(text)
        .map_err(|wrong| MethodError::InvalidParameter { parameter: invalid_parameter_name(text, &wrong) })
}

/// The name of the parameter that the parser rejected. serde_json reports the position, and for some errors
/// the name. This runs only on the error path.
fn invalid_parameter_name(text: &str, wrong: &serde_json::Error) -> String {
    let error_text = wrong.to_string();
    let quoted = error_text.split('`').nth(1).filter(|_| error_text.contains("field `"));
    if let Some(field) = quoted {
        return field.to_owned();
    }
    let line_start: usize =
        text.split_inclusive('\n').take(wrong.line().saturating_sub(1)).map(str::len).sum();
    let position = line_start + wrong.column();
    let Ok(fields) = serde_json::from_str::<OrderedFields>(text) else { return "parameters".to_owned() };
    let reached = |value: &&RawValue| value.get().as_ptr() as usize - text.as_ptr() as usize <= position;
    let last = fields.0.into_iter().take_while(|(_, value)| reached(value)).last();
    last.map_or_else(|| "parameters".to_owned(), |(name, _)| name)
}

/// The fields of an object in their order in the text.
struct OrderedFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for OrderedFields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> serde::de::Visitor<'de> for FieldsVisitor<'a> {
            type Value = OrderedFields<'a>;
            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<OrderedFields<'a>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(OrderedFields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use wattspan_client::protocol::{CancelSpan, CloseSpan, OpenSpan, SetWeight};

    use super::*;

    fn invalid_parameter<M: Method + std::fmt::Debug>(text: &str) -> String {
        invalid_parameter_name(text, &serde_json::from_str::<M>(text).unwrap_err())
    }

    #[test]
    fn an_invalid_parameter_is_named() {
        assert_eq!(invalid_parameter::<OpenSpan>(r#"{"wieght":1}"#), "wieght");
        assert_eq!(invalid_parameter::<CloseSpan>(r#"{"wait_settled":true}"#), "span");
        assert_eq!(invalid_parameter::<SetWeight>(r#"{"span":"a","weight":"heavy"}"#), "weight");
        assert_eq!(
            invalid_parameter::<OpenSpan>(
                "{\n \"name\": \"x\",\n \"attributes\": {\"a\": 1},\n \"weight\": 1}"
            ),
            "attributes"
        );
        assert_eq!(invalid_parameter::<OpenSpan>(r#"{"name":"x","at_ns":1.5,"weight":2}"#), "at_ns");
        assert_eq!(invalid_parameter::<SetWeight>(r#"{"span":"a","weight":1e999}"#), "weight");
        assert_eq!(invalid_parameter::<CancelSpan>("[]"), "parameters");
    }
}
