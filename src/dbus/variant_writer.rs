//! From the replies of the service to D-Bus values.
//!
//! An integer is `t` (`x` if negative), a fraction `d`, a struct `a{sv}`, a list `aa{sv}` or `as`. An absent value is
//! omitted, since D-Bus has none. A reply is written to the message directly: of each field first the type, then the value.

use std::collections::BTreeMap;

use serde::ser::{
    self, Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, Serializer,
};
use zbus::OwnedVariant;
use zbus::wire::serialized::Context;
use zbus::wire::{NATIVE_ENDIAN, Signature, Type, to_bytes};

/// Objects whose values are strings: `a{ss}`.
const STRING_DICT_FIELDS: &[&str] = &["attributes"];

/// Arrays of strings, also when they are empty. Any other empty array has the type `aa{sv}`.
const STRING_LIST_FIELDS: &[&str] = &["capabilities", "refused_system_calls"];

/// A dictionary in memory.
pub type VariantDict = BTreeMap<String, OwnedVariant>;

/// The dictionary of a struct in memory; empty for anything else.
pub fn to_dict<T: Serialize>(value: &T) -> VariantDict {
    let bytes = to_bytes(Context::new(NATIVE_ENDIAN, 0), &DictOf(value));
    bytes.ok().and_then(|bytes| bytes.deserialize().ok()).map_or_else(VariantDict::new, |(dict, _)| dict)
}

/// A struct, written as `a{sv}`.
pub struct DictOf<'a, T>(pub &'a T);

impl<T> Type for DictOf<'_, T> {
    const SIGNATURE: &'static Signature = VariantDict::SIGNATURE;
}

impl<T: Serialize> Serialize for DictOf<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(ValueWriter(serializer))
    }
}

/// Structs, written as `aa{sv}`.
pub struct DictsOf<'a, T>(pub &'a [T]);

impl<T> Type for DictsOf<'_, T> {
    const SIGNATURE: &'static Signature = Vec::<VariantDict>::SIGNATURE;
}

impl<T: Serialize> Serialize for DictsOf<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(ValueWriter(serializer))
    }
}

/// A field's value with its type, as D-Bus writes a variant.
struct VariantOf<'a, T: ?Sized> {
    signature: &'static str,
    value: &'a T,
}

impl<T: Serialize + ?Sized> Serialize for VariantOf<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // As zbus writes its own variants.
        let mut variant = serializer.serialize_struct("Variant", 2)?;
        variant.serialize_field("signature", self.signature)?;
        variant.serialize_field("value", &Content(self.value))?;
        variant.end()
    }
}

/// A value without its type.
struct Content<'a, T: ?Sized>(&'a T);

impl<T: Serialize + ?Sized> Serialize for Content<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(ValueWriter(serializer))
    }
}

/// Defines the methods of a serializer for what the replies of the contract do not contain.
macro_rules! reject_other_values {
    () => {
        fn serialize_bytes(self, _: &[u8]) -> Result<Self::Ok, Self::Error> {
            Err(Self::Error::custom("D-Bus expresses no bytes"))
        }

        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Result<Self::Ok, Self::Error> {
            Err(Self::Error::custom("D-Bus expresses no enum with values"))
        }

        fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Self::Error> {
            Err(Self::Error::custom("no tuple is expected"))
        }

        fn serialize_tuple_struct(
            self,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleStruct, Self::Error> {
            Err(Self::Error::custom("no tuple is expected"))
        }

        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant, Self::Error> {
            Err(Self::Error::custom("D-Bus expresses no enum with values"))
        }

        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant, Self::Error> {
            Err(Self::Error::custom("D-Bus expresses no enum with values"))
        }
    };
}

/// Defines the methods for integers and floats by those for 64 bits.
macro_rules! widen_numbers {
    () => {
        widen_numbers! {
            serialize_i8(i8) => serialize_i64;
            serialize_i16(i16) => serialize_i64;
            serialize_i32(i32) => serialize_i64;
            serialize_u8(u8) => serialize_u64;
            serialize_u16(u16) => serialize_u64;
            serialize_u32(u32) => serialize_u64;
            serialize_f32(f32) => serialize_f64;
        }
    };
    ($($method:ident($from:ty) => $wide:ident;)+) => {
        $(fn $method(self, value: $from) -> Result<Self::Ok, Self::Error> {
            self.$wide(value.into())
        })+
    };
}

/// Writes values: structs as dictionaries, integers with 64 bits.
struct ValueWriter<S>(S);

impl<S: Serializer> Serializer for ValueWriter<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = ListWriter<S::SerializeSeq>;
    type SerializeTuple = Impossible<S::Ok, S::Error>;
    type SerializeTupleStruct = Impossible<S::Ok, S::Error>;
    type SerializeTupleVariant = Impossible<S::Ok, S::Error>;
    type SerializeMap = S::SerializeMap;
    type SerializeStruct = StructWriter<S::SerializeMap>;
    type SerializeStructVariant = Impossible<S::Ok, S::Error>;

    widen_numbers!();
    reject_other_values!();

    fn serialize_bool(self, value: bool) -> Result<S::Ok, S::Error> {
        self.0.serialize_bool(value)
    }

    fn serialize_i64(self, value: i64) -> Result<S::Ok, S::Error> {
        match u64::try_from(value) {
            Ok(value) => self.0.serialize_u64(value),
            Err(_) => self.0.serialize_i64(value),
        }
    }

    fn serialize_u64(self, value: u64) -> Result<S::Ok, S::Error> {
        self.0.serialize_u64(value)
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.0.serialize_f64(value)
    }

    fn serialize_char(self, value: char) -> Result<S::Ok, S::Error> {
        self.0.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<S::Ok, S::Error> {
        self.0.serialize_str(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("D-Bus expresses no absent value"))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.serialize_none()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<S::Ok, S::Error> {
        self.serialize_none()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(length).map(ListWriter)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<S::SerializeMap, S::Error> {
        self.0.serialize_map(length)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_map(None).map(StructWriter)
    }
}

/// Writes the elements of a list.
struct ListWriter<S>(S);

impl<S: SerializeSeq> SerializeSeq for ListWriter<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_element(&Content(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

/// Writes the fields of a struct as entries of a dictionary.
struct StructWriter<M>(M);

impl<M: SerializeMap> SerializeStruct for StructWriter<M> {
    type Ok = M::Ok;
    type Error = M::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), M::Error> {
        match value.serialize(SignatureFinder { field }).map_err(M::Error::custom)? {
            Some(signature) => self.0.serialize_entry(field, &VariantOf { signature, value }),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<M::Ok, M::Error> {
        self.0.end()
    }
}

/// The replies of the contract have no such value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SignatureError(String);

impl ser::Error for SignatureError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// The D-Bus type of a value; `None` if it is absent.
type FoundSignature = Result<Option<&'static str>, SignatureError>;

/// Finds the type of a field's value.
#[derive(Clone, Copy)]
struct SignatureFinder {
    /// The name of the field, on which some types depend.
    field: &'static str,
}

impl Serializer for SignatureFinder {
    type Ok = Option<&'static str>;
    type Error = SignatureError;
    type SerializeSeq = ListSignature;
    type SerializeTuple = Impossible<Self::Ok, SignatureError>;
    type SerializeTupleStruct = Impossible<Self::Ok, SignatureError>;
    type SerializeTupleVariant = Impossible<Self::Ok, SignatureError>;
    type SerializeMap = OtherSignature;
    type SerializeStruct = OtherSignature;
    type SerializeStructVariant = Impossible<Self::Ok, SignatureError>;

    widen_numbers!();
    reject_other_values!();

    fn serialize_bool(self, _: bool) -> FoundSignature {
        Ok(Some("b"))
    }

    fn serialize_i64(self, value: i64) -> FoundSignature {
        Ok(Some(if value < 0 { "x" } else { "t" }))
    }

    fn serialize_u64(self, _: u64) -> FoundSignature {
        Ok(Some("t"))
    }

    fn serialize_f64(self, value: f64) -> FoundSignature {
        Ok(value.is_finite().then_some("d"))
    }

    fn serialize_char(self, _: char) -> FoundSignature {
        Ok(Some("s"))
    }

    fn serialize_str(self, _: &str) -> FoundSignature {
        Ok(Some("s"))
    }

    fn serialize_none(self) -> FoundSignature {
        Ok(None)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> FoundSignature {
        value.serialize(self)
    }

    fn serialize_unit(self) -> FoundSignature {
        Ok(None)
    }

    fn serialize_unit_struct(self, _: &'static str) -> FoundSignature {
        Ok(None)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> FoundSignature {
        Ok(Some("s"))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> FoundSignature {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<ListSignature, SignatureError> {
        let is_text = STRING_LIST_FIELDS.contains(&self.field).then_some(true);
        Ok(ListSignature { is_text })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<OtherSignature, SignatureError> {
        match STRING_DICT_FIELDS.contains(&self.field) {
            true => Ok(OtherSignature("a{ss}")),
            false => Err(SignatureError(format!("the type of the map {} is unknown", self.field))),
        }
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<OtherSignature, SignatureError> {
        Ok(OtherSignature("a{sv}"))
    }
}

/// The type of a list: that of its first element decides.
struct ListSignature {
    is_text: Option<bool>,
}

impl SerializeSeq for ListSignature {
    type Ok = Option<&'static str>;
    type Error = SignatureError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SignatureError> {
        if self.is_text.is_none() {
            self.is_text = Some(value.serialize(SignatureFinder { field: "" })? == Some("s"));
        }
        Ok(())
    }

    fn end(self) -> FoundSignature {
        Ok(Some(if self.is_text == Some(true) { "as" } else { "aa{sv}" }))
    }
}

/// A type that does not depend on the content.
struct OtherSignature(&'static str);

impl SerializeMap for OtherSignature {
    type Ok = Option<&'static str>;
    type Error = SignatureError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), SignatureError> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), SignatureError> {
        Ok(())
    }

    fn end(self) -> FoundSignature {
        Ok(Some(self.0))
    }
}

impl SerializeStruct for OtherSignature {
    type Ok = Option<&'static str>;
    type Error = SignatureError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        _: &'static str,
        _: &T,
    ) -> Result<(), SignatureError> {
        Ok(())
    }

    fn end(self) -> FoundSignature {
        Ok(Some(self.0))
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Map, Value, json};

    use zbus::Variant;

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
