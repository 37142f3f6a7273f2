//! From the replies of the service to D-Bus values.
//!
//! An integer is `t` (`x` if negative), a fraction `d`, a struct `a{sv}`, a list `aa{sv}` or `as`. An absent value is
//! omitted, since D-Bus has none.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{self, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, Serializer};
use zbus::Variant;

pub type VariantDict = BTreeMap<String, Variant<'static>>;

/// Objects whose values are strings: `a{ss}`.
const STRING_DICT_FIELDS: &[&str] = &["attributes"];

/// Arrays of strings, also when they are empty. Any other empty array has the type `aa{sv}`.
const STRING_LIST_FIELDS: &[&str] = &["capabilities", "refused_system_calls"];

/// The dictionary of a struct; empty for anything else.
pub fn to_dict<T: Serialize>(value: &T) -> VariantDict {
    match value.serialize(FieldWriter { field: "" }) {
        Ok(Written::Dict(dict)) => dict,
        _ => VariantDict::new(),
    }
}

/// The dictionaries of structs.
pub fn to_dicts<T: Serialize>(list: &[T]) -> Vec<VariantDict> {
    list.iter().map(to_dict).collect()
}

/// The replies of the contract have no such value.
#[derive(Debug, thiserror::Error)]
#[error("a value that D-Bus does not express: {0}")]
pub struct WriteVariantError(String);

impl ser::Error for WriteVariantError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

fn unsupported<T>(kind: &str) -> Result<T, WriteVariantError> {
    Err(WriteVariantError(kind.to_owned()))
}

/// A written value. Strings and dictionaries are kept as such, because a list of them has another type than a list of
/// variants.
enum Written {
    Absent,
    Text(String),
    Dict(VariantDict),
    Other(Variant<'static>),
}

impl Written {
    fn into_variant(self) -> Option<Variant<'static>> {
        Some(match self {
            Written::Absent => return None,
            Written::Text(text) => text.into(),
            Written::Dict(dict) => dict.into(),
            Written::Other(value) => value,
        })
    }
}

/// Writes the value of a field.
#[derive(Clone, Copy)]
struct FieldWriter {
    /// The name of the field, on which some types depend.
    field: &'static str,
}

type WriteResult = Result<Written, WriteVariantError>;

fn other(value: impl Into<Variant<'static>>) -> WriteResult {
    Ok(Written::Other(value.into()))
}

impl Serializer for FieldWriter {
    type Ok = Written;
    type Error = WriteVariantError;
    type SerializeSeq = ListWriter;
    type SerializeTuple = Impossible<Written, WriteVariantError>;
    type SerializeTupleStruct = Impossible<Written, WriteVariantError>;
    type SerializeTupleVariant = Impossible<Written, WriteVariantError>;
    type SerializeMap = MapWriter;
    type SerializeStruct = StructWriter;
    type SerializeStructVariant = Impossible<Written, WriteVariantError>;

    fn serialize_bool(self, value: bool) -> WriteResult {
        other(value)
    }

    fn serialize_i8(self, value: i8) -> WriteResult {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> WriteResult {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> WriteResult {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> WriteResult {
        u64::try_from(value).map_or_else(|_| other(value), other)
    }

    fn serialize_u8(self, value: u8) -> WriteResult {
        other(u64::from(value))
    }

    fn serialize_u16(self, value: u16) -> WriteResult {
        other(u64::from(value))
    }

    fn serialize_u32(self, value: u32) -> WriteResult {
        other(u64::from(value))
    }

    fn serialize_u64(self, value: u64) -> WriteResult {
        other(value)
    }

    fn serialize_f32(self, value: f32) -> WriteResult {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> WriteResult {
        if value.is_finite() { other(value) } else { Ok(Written::Absent) }
    }

    fn serialize_char(self, value: char) -> WriteResult {
        Ok(Written::Text(value.into()))
    }

    fn serialize_str(self, value: &str) -> WriteResult {
        Ok(Written::Text(value.to_owned()))
    }

    fn serialize_bytes(self, _: &[u8]) -> WriteResult {
        unsupported("bytes")
    }

    fn serialize_none(self) -> WriteResult {
        Ok(Written::Absent)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> WriteResult {
        value.serialize(self)
    }

    fn serialize_unit(self) -> WriteResult {
        Ok(Written::Absent)
    }

    fn serialize_unit_struct(self, _: &'static str) -> WriteResult {
        Ok(Written::Absent)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> WriteResult {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> WriteResult {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> WriteResult {
        unsupported("an enum with values")
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<ListWriter, WriteVariantError> {
        let texts = STRING_LIST_FIELDS.contains(&self.field);
        Ok(ListWriter {
            texts: texts.then(Vec::new),
            dicts: Vec::with_capacity(if texts { 0 } else { length.unwrap_or(0) }),
        })
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, WriteVariantError> {
        unsupported("a tuple")
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, WriteVariantError> {
        unsupported("a tuple")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, WriteVariantError> {
        unsupported("an enum with values")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<MapWriter, WriteVariantError> {
        match STRING_DICT_FIELDS.contains(&self.field) {
            true => Ok(MapWriter { key: String::new(), texts: BTreeMap::new() }),
            false => unsupported("a map"),
        }
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<StructWriter, WriteVariantError> {
        Ok(StructWriter(VariantDict::new()))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, WriteVariantError> {
        unsupported("an enum with values")
    }
}

/// Writes a list of strings or of structs.
struct ListWriter {
    texts: Option<Vec<String>>,
    dicts: Vec<VariantDict>,
}

impl SerializeSeq for ListWriter {
    type Ok = Written;
    type Error = WriteVariantError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteVariantError> {
        match value.serialize(FieldWriter { field: "" })? {
            Written::Text(text) => self.texts.get_or_insert_default().push(text),
            Written::Dict(dict) => self.dicts.push(dict),
            Written::Absent | Written::Other(_) => return unsupported("a list of other values"),
        }
        Ok(())
    }

    fn end(self) -> WriteResult {
        match self.texts {
            Some(texts) => other(texts),
            None => other(self.dicts),
        }
    }
}

/// Writes a map of strings.
struct MapWriter {
    key: String,
    texts: BTreeMap<String, String>,
}

impl SerializeMap for MapWriter {
    type Ok = Written;
    type Error = WriteVariantError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WriteVariantError> {
        let Written::Text(key) = key.serialize(FieldWriter { field: "" })? else {
            return unsupported("a key that is no string");
        };
        self.key = key;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteVariantError> {
        if let Written::Text(text) = value.serialize(FieldWriter { field: "" })? {
            self.texts.insert(std::mem::take(&mut self.key), text);
        }
        Ok(())
    }

    fn end(self) -> WriteResult {
        other(self.texts)
    }
}

/// Writes a struct.
struct StructWriter(VariantDict);

impl SerializeStruct for StructWriter {
    type Ok = Written;
    type Error = WriteVariantError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), WriteVariantError> {
        if let Some(value) = value.serialize(FieldWriter { field })?.into_variant() {
            self.0.insert(field.to_owned(), value);
        }
        Ok(())
    }

    fn end(self) -> WriteResult {
        Ok(Written::Dict(self.0))
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Map, Value, json};

    use super::*;

    #[derive(Serialize)]
    struct Part {
        domain: &'static str,
        unknown_ns: u64,
    }

    #[derive(Serialize)]
    struct Whole {
        span: &'static str,
        weight: f64,
        share_uj: u64,
        residual: i64,
        idle_uj: Option<u64>,
        ratio: f64,
        attributes: BTreeMap<&'static str, &'static str>,
        domains: Vec<Part>,
        phases: Vec<Part>,
        names: Vec<String>,
        counted: bool,
        capabilities: Vec<String>,
        refused_system_calls: Vec<String>,
        confinement: Part,
    }

    fn whole() -> Whole {
        let part = || Part { domain: "dram-0", unknown_ns: 0 };
        Whole {
            span: "a",
            weight: 1.0,
            share_uj: u64::MAX,
            residual: -1,
            idle_uj: None,
            ratio: f64::NAN,
            attributes: [("model", "m")].into(),
            domains: vec![part(), part()],
            phases: Vec::new(),
            names: vec!["x".into()],
            counted: true,
            capabilities: Vec::new(),
            refused_system_calls: Vec::new(),
            confinement: part(),
        }
    }

    #[test]
    fn a_struct_has_natural_types_and_omits_absent_values() {
        let dict = to_dict(&whole());
        let signature = |name: &str| dict[name].value_signature().to_string();
        for (name, expected) in [
            ("span", "s"),
            ("weight", "d"),
            ("share_uj", "t"),
            ("residual", "x"),
            ("attributes", "a{ss}"),
            ("domains", "aa{sv}"),
            ("phases", "aa{sv}"),
            ("names", "as"),
            ("counted", "b"),
            ("capabilities", "as"),
            ("refused_system_calls", "as"),
            ("confinement", "a{sv}"),
        ] {
            assert_eq!(signature(name), expected, "{name}");
        }
        assert!(!dict.contains_key("idle_uj") && !dict.contains_key("ratio"));
    }

    /// The JSON of the same values, without absent ones.
    fn to_json(value: &Variant) -> Value {
        match value {
            Variant::Bool(flag) => json!(flag),
            Variant::U64(number) => json!(number),
            Variant::I64(number) => json!(number),
            Variant::F64(number) => json!(number),
            Variant::Str(text) => json!(text.as_str()),
            Variant::Variant(inner) => to_json(inner),
            Variant::Array(list) => list.inner().iter().map(to_json).collect(),
            Variant::Dict(dict) => {
                let entry = |(name, value): (&Variant, &Variant)| match name {
                    Variant::Str(name) => (name.as_str().to_owned(), to_json(value)),
                    other => panic!("{other:?}"),
                };
                dict.iter().map(entry).collect::<Map<_, _>>().into()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_values_are_those_of_the_socket() {
        let Value::Object(mut expected) = serde_json::to_value(whole()).unwrap() else { panic!() };
        expected.retain(|_, value| !value.is_null());
        let written: Map<_, _> =
            to_dict(&whole()).iter().map(|(name, value)| (name.clone(), to_json(value))).collect();
        assert_eq!(written, expected);
    }
}
