//! From the replies of the service to D-Bus values.
//!
//! An integer is `t` (`x` if negative), a fraction `d`, a struct `a{sv}`, a list `aa{sv}` or `as`. An absent value is
//! omitted, since D-Bus has none. One pass writes the body of a message, aligned as "Marshaling (Wire Format)" of the D-Bus
//! specification states. zbus would parse the type of each value, and an account has some 60 values.

use std::collections::BTreeMap;

use serde::ser::{
    self, Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, Serializer,
};
use zbus::OwnedVariant;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{Endian, NATIVE_ENDIAN, Signature, Type};

/// Objects whose values are strings: `a{ss}`.
const STRING_DICT_FIELDS: &[&str] = &["attributes"];

/// Arrays of strings, also when they are empty. Any other empty array has the type `aa{sv}`.
const STRING_LIST_FIELDS: &[&str] = &["capabilities", "refused_system_calls"];

/// The room for an account of four domains.
const USUAL_BODY_BYTES: usize = 2048;

/// Alignment of an entry of a dictionary.
const ENTRY_ALIGNMENT: usize = 8;

/// Alignment of an array and of a string, by their lengths.
const LENGTH_ALIGNMENT: usize = 4;

/// A dictionary in memory.
pub type VariantDict = BTreeMap<String, OwnedVariant>;

/// The dictionary of a struct in memory; empty for anything else.
pub fn to_dict<T: Serialize>(value: &T) -> VariantDict {
    let Ok(body) = EncodedBody::dict(value, NATIVE_ENDIAN) else { return VariantDict::new() };
    let data = Data::new(body.bytes, Context::new(body.endian, 0));
    data.deserialize().map_or_else(|_| VariantDict::new(), |(dict, _)| dict)
}

/// The body of a message, with its type. Invariant: the bytes are a value of that type.
#[derive(Debug)]
pub struct EncodedBody {
    bytes: Vec<u8>,
    endian: Endian,
    signature: &'static Signature,
}

impl EncodedBody {
    /// A struct, as `a{sv}`.
    ///
    /// # Errors
    /// It is no struct, or D-Bus does not express a value in it.
    pub fn dict<T: Serialize + ?Sized>(value: &T, endian: Endian) -> Result<Self, EncodeBodyError> {
        Self::encode(value, endian, VariantDict::SIGNATURE, WrittenValue::Dict)
    }

    /// Structs, as `aa{sv}`.
    ///
    /// # Errors
    /// D-Bus does not express a value in them.
    pub fn dicts<T: Serialize>(values: &[T], endian: Endian) -> Result<Self, EncodeBodyError> {
        Self::encode(values, endian, Vec::<VariantDict>::SIGNATURE, WrittenValue::Dicts)
    }

    fn encode<T: Serialize + ?Sized>(
        value: &T,
        endian: Endian,
        signature: &'static Signature,
        expected: WrittenValue,
    ) -> Result<Self, EncodeBodyError> {
        let mut body = BodyWriter { bytes: Vec::with_capacity(USUAL_BODY_BYTES), endian };
        let written = value.serialize(ValueWriter { body: &mut body, field: None })?;
        // An empty list has no elements that could be something else.
        if written != expected && (written, expected) != (WrittenValue::EmptyList, WrittenValue::Dicts) {
            return Err(EncodeBodyError::custom(format_args!("the reply is no {signature}")));
        }
        Ok(Self { bytes: body.bytes, endian, signature })
    }

    /// The bytes of the body.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The byte order of its numbers.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// Its type.
    pub fn signature(&self) -> &'static Signature {
        self.signature
    }
}

/// A reply of the contract has no such value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EncodeBodyError(String);

impl ser::Error for EncodeBodyError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Writes D-Bus values of known types.
struct BodyWriter {
    bytes: Vec<u8>,
    endian: Endian,
}

/// An array that is being written.
struct OpenArray {
    length_at: usize,
    begins_at: usize,
}

impl BodyWriter {
    fn align(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }

    fn u32_bytes(&self, value: u32) -> [u8; 4] {
        match self.endian {
            Endian::Little => value.to_le_bytes(),
            Endian::Big => value.to_be_bytes(),
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.align(size_of::<u32>());
        let bytes = self.u32_bytes(value);
        self.bytes.extend_from_slice(&bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.align(size_of::<u64>());
        self.bytes.extend_from_slice(&match self.endian {
            Endian::Little => value.to_le_bytes(),
            Endian::Big => value.to_be_bytes(),
        });
    }

    fn write_text(&mut self, text: &str) -> Result<(), EncodeBodyError> {
        if memchr::memchr(0, text.as_bytes()).is_some() {
            return Err(EncodeBodyError::custom("D-Bus expresses no text with a NUL"));
        }
        self.write_u32(length_of(text.len())?);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        Ok(())
    }

    /// Writes a type of at most 255 bytes.
    fn write_signature(&mut self, signature: &'static str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    /// Begins an array. The padding before the first element is there also if there is none, and counts for no length.
    fn begin_array(&mut self, element_alignment: usize) -> OpenArray {
        self.align(LENGTH_ALIGNMENT);
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; size_of::<u32>()]);
        self.align(element_alignment);
        OpenArray { length_at, begins_at: self.bytes.len() }
    }

    fn end_array(&mut self, array: &OpenArray) -> Result<(), EncodeBodyError> {
        let length = self.u32_bytes(length_of(self.bytes.len() - array.begins_at)?);
        self.bytes[array.length_at..][..length.len()].copy_from_slice(&length);
        Ok(())
    }
}

fn length_of(bytes: usize) -> Result<u32, EncodeBodyError> {
    u32::try_from(bytes).map_err(EncodeBodyError::custom)
}

/// What a value was written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WrittenValue {
    /// The value is absent: nothing was written.
    Nothing,
    Text,
    Dict,
    Texts,
    Dicts,
    /// A list without elements, whose type its field decides.
    EmptyList,
    Other,
}

/// Writes one value.
struct ValueWriter<'a> {
    body: &'a mut BodyWriter,
    /// The name of the field whose variant this is: the type comes before the value. `None`: the type is known, and the value
    /// cannot be absent.
    field: Option<&'static str>,
}

impl<'a> ValueWriter<'a> {
    fn begin(self, signature: &'static str) -> &'a mut BodyWriter {
        if self.field.is_some() {
            self.body.write_signature(signature);
        }
        self.body
    }

    fn write_absent(self) -> Result<WrittenValue, EncodeBodyError> {
        match self.field {
            Some(_) => Ok(WrittenValue::Nothing),
            None => Err(EncodeBodyError::custom("D-Bus expresses no absent value")),
        }
    }
}

/// Defines the methods for integers and floats by those for 64 bits.
macro_rules! widen_numbers {
    ($($method:ident($from:ty) => $wide:ident;)+) => {
        $(fn $method(self, value: $from) -> Result<Self::Ok, Self::Error> {
            self.$wide(value.into())
        })+
    };
}

/// Defines the methods for what the replies of the contract do not contain.
macro_rules! reject_values {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)+) => {
        $(fn $method(self, $(_: $argument),*) -> Result<$ok, Self::Error> {
            Err(EncodeBodyError::custom("a reply has no bytes, no tuples and no enums with values"))
        })+
    };
}

impl<'a> Serializer for ValueWriter<'a> {
    type Ok = WrittenValue;
    type Error = EncodeBodyError;
    type SerializeSeq = ListWriter<'a>;
    type SerializeTuple = Impossible<WrittenValue, EncodeBodyError>;
    type SerializeTupleStruct = Impossible<WrittenValue, EncodeBodyError>;
    type SerializeTupleVariant = Impossible<WrittenValue, EncodeBodyError>;
    type SerializeMap = TextDictWriter<'a>;
    type SerializeStruct = DictWriter<'a>;
    type SerializeStructVariant = Impossible<WrittenValue, EncodeBodyError>;

    widen_numbers! {
        serialize_i8(i8) => serialize_i64;
        serialize_i16(i16) => serialize_i64;
        serialize_i32(i32) => serialize_i64;
        serialize_u8(u8) => serialize_u64;
        serialize_u16(u16) => serialize_u64;
        serialize_u32(u32) => serialize_u64;
        serialize_f32(f32) => serialize_f64;
    }

    reject_values! {
        serialize_bytes(&[u8]) -> WrittenValue;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: &T,
    ) -> Result<WrittenValue, EncodeBodyError> {
        Err(EncodeBodyError::custom(format_args!("D-Bus expresses no enum with values: {name}")))
    }

    fn serialize_bool(self, value: bool) -> Result<WrittenValue, EncodeBodyError> {
        self.begin("b").write_u32(value.into());
        Ok(WrittenValue::Other)
    }

    fn serialize_i64(self, value: i64) -> Result<WrittenValue, EncodeBodyError> {
        self.begin(if value < 0 { "x" } else { "t" }).write_u64(value.cast_unsigned());
        Ok(WrittenValue::Other)
    }

    fn serialize_u64(self, value: u64) -> Result<WrittenValue, EncodeBodyError> {
        self.begin("t").write_u64(value);
        Ok(WrittenValue::Other)
    }

    fn serialize_f64(self, value: f64) -> Result<WrittenValue, EncodeBodyError> {
        if !value.is_finite() {
            return self.write_absent();
        }
        self.begin("d").write_u64(value.to_bits());
        Ok(WrittenValue::Other)
    }

    fn serialize_char(self, value: char) -> Result<WrittenValue, EncodeBodyError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<WrittenValue, EncodeBodyError> {
        self.begin("s").write_text(value)?;
        Ok(WrittenValue::Text)
    }

    fn serialize_none(self) -> Result<WrittenValue, EncodeBodyError> {
        self.write_absent()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<WrittenValue, EncodeBodyError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<WrittenValue, EncodeBodyError> {
        self.write_absent()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<WrittenValue, EncodeBodyError> {
        self.write_absent()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<WrittenValue, EncodeBodyError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<WrittenValue, EncodeBodyError> {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<ListWriter<'a>, EncodeBodyError> {
        Ok(ListWriter::begin(self))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<TextDictWriter<'a>, EncodeBodyError> {
        match self.field {
            Some(field) if STRING_DICT_FIELDS.contains(&field) => {
                let body = self.begin("a{ss}");
                let array = body.begin_array(ENTRY_ALIGNMENT);
                Ok(TextDictWriter { body, array })
            }
            field => Err(EncodeBodyError::custom(format_args!("the type of the map {field:?} is unknown"))),
        }
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<DictWriter<'a>, EncodeBodyError> {
        let body = self.begin("a{sv}");
        let array = body.begin_array(ENTRY_ALIGNMENT);
        Ok(DictWriter { body, array })
    }
}

/// Writes a list of strings, or of structs. Its first element decides, and its field where there is none.
struct ListWriter<'a> {
    body: &'a mut BodyWriter,
    field: Option<&'static str>,
    begins_at: usize,
    array: OpenArray,
    /// What the elements are; `None` before the first one.
    element: Option<WrittenValue>,
}

impl<'a> ListWriter<'a> {
    fn begin(ValueWriter { body, field }: ValueWriter<'a>) -> Self {
        let has_texts = field.is_some_and(|field| STRING_LIST_FIELDS.contains(&field));
        let begins_at = body.bytes.len();
        let signature = if has_texts { "as" } else { "aa{sv}" };
        let array = begin_list(body, field.map(|_| signature));
        Self { body, field, begins_at, array, element: has_texts.then_some(WrittenValue::Text) }
    }
}

fn begin_list(body: &mut BodyWriter, signature: Option<&'static str>) -> OpenArray {
    if let Some(signature) = signature {
        body.write_signature(signature);
    }
    body.begin_array(LENGTH_ALIGNMENT)
}

impl SerializeSeq for ListWriter<'_> {
    type Ok = WrittenValue;
    type Error = EncodeBodyError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeBodyError> {
        let mut written = value.serialize(ValueWriter { body: self.body, field: None })?;
        if self.element.is_none() && written == WrittenValue::Text {
            // The type of structs stands there.
            self.body.bytes.truncate(self.begins_at);
            self.array = begin_list(self.body, self.field.map(|_| "as"));
            written = value.serialize(ValueWriter { body: self.body, field: None })?;
        }
        let is_known = matches!(written, WrittenValue::Text | WrittenValue::Dict);
        if is_known && *self.element.get_or_insert(written) == written {
            return Ok(());
        }
        Err(EncodeBodyError::custom("a list contains something else than strings, or than structs"))
    }

    fn end(self) -> Result<WrittenValue, EncodeBodyError> {
        self.body.end_array(&self.array)?;
        Ok(match self.element {
            None => WrittenValue::EmptyList,
            Some(WrittenValue::Text) => WrittenValue::Texts,
            Some(_) => WrittenValue::Dicts,
        })
    }
}

/// Writes the fields of a struct as entries of a dictionary.
struct DictWriter<'a> {
    body: &'a mut BodyWriter,
    array: OpenArray,
}

impl SerializeStruct for DictWriter<'_> {
    type Ok = WrittenValue;
    type Error = EncodeBodyError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), EncodeBodyError> {
        let begins_at = self.body.bytes.len();
        self.body.align(ENTRY_ALIGNMENT);
        self.body.write_text(field)?;
        let written = value.serialize(ValueWriter { body: self.body, field: Some(field) })?;
        if written == WrittenValue::Nothing {
            self.body.bytes.truncate(begins_at);
        }
        Ok(())
    }

    fn end(self) -> Result<WrittenValue, EncodeBodyError> {
        self.body.end_array(&self.array)?;
        Ok(WrittenValue::Dict)
    }
}

/// Writes a map of strings.
struct TextDictWriter<'a> {
    body: &'a mut BodyWriter,
    array: OpenArray,
}

impl TextDictWriter<'_> {
    fn write<T: Serialize + ?Sized>(&mut self, text: &T) -> Result<(), EncodeBodyError> {
        match text.serialize(ValueWriter { body: self.body, field: None })? {
            WrittenValue::Text => Ok(()),
            _ => Err(EncodeBodyError::custom("a map contains something else than strings")),
        }
    }
}

impl SerializeMap for TextDictWriter<'_> {
    type Ok = WrittenValue;
    type Error = EncodeBodyError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EncodeBodyError> {
        self.body.align(ENTRY_ALIGNMENT);
        self.write(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EncodeBodyError> {
        self.write(value)
    }

    fn end(self) -> Result<WrittenValue, EncodeBodyError> {
        self.body.end_array(&self.array)?;
        Ok(WrittenValue::Other)
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Map, Value, json};

    use zbus::Variant;
    use zbus::wire::to_bytes;

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

    /// The dictionary that zbus reads from a body.
    fn read_back(body: EncodedBody) -> VariantDict {
        let data = Data::new(body.bytes, Context::new(body.endian, 0));
        let (dict, read): (VariantDict, usize) = data.deserialize().unwrap();
        assert_eq!(read, data.len(), "all bytes belong to the value");
        dict
    }

    #[test]
    fn the_body_is_the_one_that_zbus_writes_in_both_byte_orders() {
        for endian in [Endian::Little, Endian::Big] {
            let body = EncodedBody::dict(&whole(), endian).unwrap();
            let bytes = body.bytes().to_vec();
            let dict = read_back(body);
            assert_eq!(dict, to_dict(&whole()));
            // zbus writes the entries of this map in the order of their names.
            let sorted = to_bytes(Context::new(endian, 0), &dict).unwrap();
            assert_eq!(bytes.len(), sorted.len());
            let body = EncodedBody::dicts(&[whole(), whole()], endian).unwrap();
            let data = Data::new(body.bytes, Context::new(endian, 0));
            let (dicts, _): (Vec<VariantDict>, usize) = data.deserialize().unwrap();
            assert_eq!(dicts, [to_dict(&whole()), to_dict(&whole())]);
        }
        #[derive(Serialize)]
        struct Sorted {
            a: bool,
            b: Vec<Part>,
            c: Vec<String>,
            d: i64,
            e: f64,
            f: &'static str,
        }
        let part = Part { domain: "x", unknown_ns: 3 };
        let sorted = Sorted { a: true, b: vec![part], c: vec!["yz".into()], d: -3, e: 0.5, f: "long text" };
        for endian in [Endian::Little, Endian::Big] {
            let body = EncodedBody::dict(&sorted, endian).unwrap();
            let of_zbus = to_bytes(Context::new(endian, 0), &to_dict(&sorted)).unwrap();
            assert_eq!(body.bytes(), of_zbus.bytes());
        }
    }

    #[test]
    fn empty_structs_and_lists_are_valid_bodies() {
        #[derive(Serialize)]
        struct Empty {}
        assert_eq!(read_back(EncodedBody::dict(&Empty {}, Endian::Big).unwrap()), VariantDict::new());
        let body = EncodedBody::dicts::<Empty>(&[], Endian::Little).unwrap();
        assert_eq!(body.bytes(), [0; 4]);
    }

    #[test]
    fn what_a_reply_cannot_have_is_rejected_and_not_written_as_another_type() {
        #[derive(Serialize)]
        struct Holder<T> {
            values: T,
        }
        fn is_rejected<T: Serialize>(values: T) -> bool {
            EncodedBody::dict(&Holder { values }, Endian::Little).is_err()
        }
        assert!(is_rejected(vec![1, 2]) && is_rejected((1, 2)) && is_rejected("a\0b"));
        assert!(is_rejected(vec![Some("a"), None]) && is_rejected(vec![vec!["a"]]));
        assert!(is_rejected(BTreeMap::from([("a", "b")])), "no map of an unknown type");
        #[derive(Serialize)]
        struct Attributes<T> {
            attributes: BTreeMap<&'static str, T>,
        }
        let numbers = Attributes { attributes: BTreeMap::from([("a", 1)]) };
        assert!(EncodedBody::dict(&numbers, Endian::Little).is_err());
        assert!(EncodedBody::dict("text", Endian::Little).is_err());
        assert!(EncodedBody::dicts(&["text"], Endian::Little).is_err());
    }
}
