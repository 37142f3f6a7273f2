//! Conversion between D-Bus values and the JSON of the service.
//!
//! To JSON: integers and doubles are numbers, strings are strings, `a{sv}` and `a{ss}` are objects. From
//! JSON: an integer is `t` (`x` if negative), a fraction `d`, an object `a{sv}`, an array `aa{sv}` or `as`. A
//! null is omitted, since D-Bus has none.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};
use zbus::Variant;

pub type VariantDict = BTreeMap<String, Variant<'static>>;

/// Objects whose values are strings: `a{ss}`.
const STRING_DICT_FIELDS: &[&str] = &["attributes"];

/// Arrays of strings, also when they are empty. Any other empty array has the type `aa{sv}`.
const STRING_LIST_FIELDS: &[&str] = &["capabilities", "refused_system_calls"];

/// A value that JSON cannot express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConvertValueError(&'static str);

pub fn from_variant(value: &Variant) -> Result<Value, ConvertValueError> {
    Ok(match value {
        Variant::U8(number) => (*number).into(),
        Variant::I16(number) => (*number).into(),
        Variant::U16(number) => (*number).into(),
        Variant::I32(number) => (*number).into(),
        Variant::U32(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U64(number) => (*number).into(),
        Variant::F64(number) => {
            Number::from_f64(*number).ok_or(ConvertValueError("is not a finite number"))?.into()
        }
        Variant::Bool(flag) => (*flag).into(),
        Variant::Str(text) => text.as_str().into(),
        Variant::Variant(inner) => from_variant(inner)?,
        Variant::Array(list) => list.inner().iter().map(from_variant).collect::<Result<_, _>>()?,
        Variant::Dict(dict) => {
            let mut object = Map::new();
            for (name, value) in dict.iter() {
                let Variant::Str(name) = name else {
                    return Err(ConvertValueError("has keys that are not strings"));
                };
                object.insert(name.as_str().to_owned(), from_variant(value)?);
            }
            object.into()
        }
        Variant::Fd(_) => return Err(ConvertValueError("is a descriptor, which is not accepted")),
        Variant::Structure(_) | Variant::ObjectPath(_) | Variant::Signature(_) => {
            return Err(ConvertValueError("has an unsupported type"));
        }
    })
}

/// The D-Bus value of a field with this name; `None` for null.
pub fn to_variant(name: &str, json: Value) -> Option<Variant<'static>> {
    Some(match json {
        Value::Null => return None,
        Value::Bool(flag) => flag.into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => number.as_f64()?.into(),
        },
        Value::String(text) => text.into(),
        Value::Array(list)
            if STRING_LIST_FIELDS.contains(&name) || list.first().is_some_and(Value::is_string) =>
        {
            to_strings(list).into()
        }
        Value::Array(list) => to_dicts(list).into(),
        Value::Object(object) if STRING_DICT_FIELDS.contains(&name) => {
            let text =
                |(name, value)| if let Value::String(text) = value { Some((name, text)) } else { None };
            object.into_iter().filter_map(text).collect::<BTreeMap<String, String>>().into()
        }
        Value::Object(object) => to_dict(object).into(),
    })
}

pub fn to_dict(object: Map<String, Value>) -> VariantDict {
    let each = |(name, value): (String, Value)| to_variant(&name, value).map(|value| (name, value));
    object.into_iter().filter_map(each).collect()
}

pub fn to_dicts(list: Vec<Value>) -> Vec<VariantDict> {
    let row = |value| if let Value::Object(object) = value { Some(to_dict(object)) } else { None };
    list.into_iter().filter_map(row).collect()
}

fn to_strings(list: Vec<Value>) -> Vec<String> {
    let text = |value| if let Value::String(text) = value { Some(text) } else { None };
    list.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_account_has_natural_types_and_omits_nulls() {
        let Value::Object(account) = json!({
            "span": "a", "weight": 1.0, "share_uj": 12, "idle_uj": null, "attributes": {"model": "m"},
            "domains": [{"domain": "dram-0", "unknown_ns": 0}], "phases": [], "counted": true,
            "capabilities": [], "refused_system_calls": ["execve"]
        }) else {
            unreachable!()
        };
        let dict = to_dict(account);
        let signature = |name: &str| dict[name].value_signature().to_string();
        assert!(!dict.contains_key("idle_uj"));
        for (name, expected) in [
            ("span", "s"),
            ("weight", "d"),
            ("share_uj", "t"),
            ("attributes", "a{ss}"),
            ("domains", "aa{sv}"),
            ("phases", "aa{sv}"),
            ("counted", "b"),
            ("capabilities", "as"),
            ("refused_system_calls", "as"),
        ] {
            assert_eq!(signature(name), expected, "{name}");
        }
    }

    #[test]
    fn arguments_become_the_json_of_the_socket() {
        let strings = BTreeMap::from([("model".to_owned(), "m".to_owned())]);
        assert_eq!(from_variant(&strings.into()), Ok(json!({"model": "m"})));
        assert_eq!(from_variant(&vec!["package-0".to_owned()].into()), Ok(json!(["package-0"])));
        assert_eq!(from_variant(&Variant::Variant(Box::new(7_i16.into()))), Ok(json!(7)));
        assert_eq!(from_variant(&0.5_f64.into()), Ok(json!(0.5)));
        assert!(from_variant(&f64::NAN.into()).is_err());
        assert!(from_variant(&BTreeMap::from([(1_u8, 2_u8)]).into()).is_err());
    }
}
