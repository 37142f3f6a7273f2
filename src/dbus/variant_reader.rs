//! From D-Bus values to the requests of the service.
//!
//! Integers and doubles are numbers, strings are strings, `a{sv}` and `a{ss}` are structs and maps. The structs of the
//! contract decide which parameters there are and of which type.

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use std::cell::Cell;
use std::fmt;

use wattspan_client::protocol::{Method, MethodError};
use zbus::Variant;

use crate::service::ParameterSource;

/// The named arguments of a call.
///
/// A call has at most `MAX_ARGUMENTS`, so that the search for a name that is given twice is short.
#[derive(Debug, Default)]
pub struct Arguments<'a>(Vec<(&'a str, &'a Variant<'a>)>);

/// More than any method of the contract takes.
const MAX_ARGUMENTS: usize = 32;

impl<'a> Arguments<'a> {
    /// Adds an argument.
    ///
    /// # Errors
    /// `InvalidValue`: it has a type that no parameter can have, is given twice, or is one too many.
    pub fn insert(&mut self, name: &'a str, value: &'a Variant<'a>) -> Result<(), MethodError> {
        let wrong =
            |reason: &str| MethodError::InvalidValue { field: name.to_owned(), reason: reason.to_owned() };
        if self.0.len() >= MAX_ARGUMENTS {
            return Err(wrong("is one argument too many"));
        }
        check_type(value).map_err(wrong)?;
        if self.0.iter().any(|(given, _)| *given == name) {
            return Err(wrong("is given twice"));
        }
        self.0.push((name, value));
        Ok(())
    }
}

/// Whether a parameter can have this value.
fn check_type(value: &Variant) -> Result<(), &'static str> {
    match value {
        Variant::F64(number) if !number.is_finite() => Err("is not a finite number"),
        Variant::Variant(inner) => check_type(inner),
        Variant::Array(list) => list.inner().iter().try_for_each(check_type),
        Variant::Dict(dict) => dict.iter().try_for_each(|(name, value)| match name {
            Variant::Str(_) => check_type(value),
            _ => Err("has keys that are not strings"),
        }),
        Variant::Fd(_) => Err("is a descriptor, which is not accepted"),
        Variant::Structure(_) | Variant::ObjectPath(_) | Variant::Signature(_) => {
            Err("has an unsupported type")
        }
        _ => Ok(()),
    }
}

impl ParameterSource for Arguments<'_> {
    fn parse<M: Method>(&self) -> Result<M, MethodError> {
        let last = Cell::new("parameters");
        let entries = self.0.iter().map(|(name, value)| {
            last.set(name);
            (*name, Value(value))
        });
        M::deserialize(MapDeserializer::new(entries)).map_err(|InvalidArgumentError { field }| {
            MethodError::InvalidParameter { parameter: field.unwrap_or_else(|| last.get().to_owned()) }
        })
    }
}

/// An argument that the method does not take.
#[derive(Debug, thiserror::Error)]
#[error("invalid argument")]
struct InvalidArgumentError {
    /// Its name; `None`: the argument that was read last.
    field: Option<String>,
}

impl de::Error for InvalidArgumentError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self { field: None }
    }

    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self { field: Some(field.to_owned()) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { field: Some(field.to_owned()) }
    }
}

#[derive(Clone, Copy)]
struct Value<'a>(&'a Variant<'a>);

impl<'de> IntoDeserializer<'de, InvalidArgumentError> for Value<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = InvalidArgumentError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InvalidArgumentError> {
        match self.0 {
            Variant::U8(number) => visitor.visit_u64((*number).into()),
            Variant::I16(number) => visitor.visit_i64((*number).into()),
            Variant::U16(number) => visitor.visit_u64((*number).into()),
            Variant::I32(number) => visitor.visit_i64((*number).into()),
            Variant::U32(number) => visitor.visit_u64((*number).into()),
            Variant::I64(number) => visitor.visit_i64(*number),
            Variant::U64(number) => visitor.visit_u64(*number),
            Variant::F64(number) => visitor.visit_f64(*number),
            Variant::Bool(flag) => visitor.visit_bool(*flag),
            Variant::Str(text) => visitor.visit_str(text.as_str()),
            Variant::Variant(inner) => Value(inner).deserialize_any(visitor),
            Variant::Array(list) => visitor.visit_seq(SeqDeserializer::new(list.inner().iter().map(Value))),
            Variant::Dict(dict) => {
                let entries = dict.iter().map(|(name, value)| (Value(name), Value(value)));
                visitor.visit_map(MapDeserializer::new(entries))
            }
            _ => Err(de::Error::custom("")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InvalidArgumentError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InvalidArgumentError> {
        match self.0 {
            Variant::Str(text) => visitor.visit_enum(StrDeserializer::new(text.as_str())),
            Variant::Variant(inner) => Value(inner).deserialize_enum("", &[], visitor),
            _ => Err(de::Error::custom("")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wattspan_client::account::SpanState;
    use wattspan_client::protocol::{CloseSpan, ListSpans, OpenSpan, SetWeight};

    use super::*;

    fn parse<M: Method>(arguments: &[(&str, Variant)]) -> Result<M, MethodError> {
        let mut parsed = Arguments::default();
        arguments.iter().try_for_each(|(name, value)| parsed.insert(name, value))?;
        parsed.parse()
    }

    #[test]
    fn arguments_become_the_request_of_the_contract() {
        let attributes = BTreeMap::from([("model".to_owned(), "m".to_owned())]);
        let open = parse::<OpenSpan>(&[
            ("span", "s".into()),
            ("attributes", attributes.clone().into()),
            ("domains", vec!["package-0".to_owned()].into()),
            ("weight", Variant::Variant(Box::new(7_i16.into()))),
            ("at_ns", 5_u64.into()),
            ("process_share", false.into()),
        ]);
        let expected = OpenSpan {
            span: Some("s".into()),
            attributes: Some(attributes),
            domains: Some(vec!["package-0".into()]),
            weight: Some(7.0),
            at_ns: Some(5),
            process_share: Some(false),
            ..OpenSpan::default()
        };
        assert_eq!(open, Ok(expected));
        let list = parse::<ListSpans>(&[("state", "settled".into()), ("limit", (-3_i32).into())]).unwrap();
        assert_eq!((list.state, list.limit), (Some(SpanState::Settled), Some(-3)));
        assert_eq!(parse::<OpenSpan>(&[]), Ok(OpenSpan::default()));
    }

    #[test]
    fn an_invalid_parameter_is_named() {
        let wrong = |parameter: &str| MethodError::InvalidParameter { parameter: parameter.into() };
        let numbers = BTreeMap::from([("a".to_owned(), Variant::from(1_u8))]);
        assert_eq!(parse::<OpenSpan>(&[("wieght", 1_u8.into())]), Err(wrong("wieght")));
        assert_eq!(parse::<CloseSpan>(&[("wait_settled", true.into())]), Err(wrong("span")));
        assert_eq!(
            parse::<SetWeight>(&[("span", "a".into()), ("weight", "heavy".into())]),
            Err(wrong("weight"))
        );
        assert_eq!(
            parse::<OpenSpan>(&[("attributes", numbers.into()), ("weight", 1.0.into())]),
            Err(wrong("attributes"))
        );
        assert_eq!(parse::<OpenSpan>(&[("at_ns", 1.5.into())]), Err(wrong("at_ns")));
        assert_eq!(parse::<OpenSpan>(&[("at_ns", u64::MAX.into())]), Err(wrong("at_ns")));
        assert_eq!(parse::<ListSpans>(&[("state", "unknown".into())]), Err(wrong("state")));
    }

    #[test]
    fn a_value_of_a_type_that_no_parameter_has_is_rejected() {
        let reason = |value: Variant| match parse::<OpenSpan>(&[("weight", value)]) {
            Err(MethodError::InvalidValue { field, reason }) if field == "weight" => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(f64::NAN.into()), "is not a finite number");
        assert_eq!(reason(BTreeMap::from([(1_u8, 2_u8)]).into()), "has keys that are not strings");
        assert_eq!(reason(vec![f64::INFINITY].into()), "is not a finite number");
        let twice = parse::<CloseSpan>(&[("span", "a".into()), ("span", "b".into())]);
        assert_eq!(twice.unwrap_err().to_string(), "span: is given twice");
    }
}
