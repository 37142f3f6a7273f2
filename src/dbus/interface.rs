//! The interface `org.wattspan.Wattspan1`: its methods, properties and introspection text.
//!
//! Owns the two tables that map a method or property on the bus to a method of the service. The tests compare them with
//! the installed introspection text and with the service's list of methods, so that no method is omitted by accident.

use wattspan_client::protocol::{MethodError, MethodName};
use zbus::message::Body;
use zbus::{Structure, Variant};

use super::dbus_error::DbusError;
use super::names::OBJECT_PATH;
use super::variant_reader::Arguments;
use super::variant_writer::VariantDict;
use crate::service::Request;

#[derive(Debug)]
pub struct DbusMethod {
    pub name: &'static str,
    /// The method of the service.
    pub method: MethodName,
    /// The D-Bus signature of its arguments.
    pub signature: &'static str,
    /// Names of the positional arguments. One more argument, if any, is a dictionary of options.
    pub arguments: &'static [&'static str],
}

macro_rules! methods {
    ($($name:ident $method:ident $signature:literal $arguments:expr;)*) => {
        pub const METHODS: &[DbusMethod] = &[$(
            DbusMethod {
                name: stringify!($name),
                method: MethodName::$method,
                signature: $signature,
                arguments: &$arguments,
            }
        ),*];
    };
}

methods! {
    OpenSpan OpenSpan "a{sv}" [];
    CloseSpan CloseSpan "sa{sv}" ["span"];
    MarkPhase MarkPhase "ssa{sv}" ["span", "phase"];
    SetWeight SetWeight "sda{sv}" ["span", "weight"];
    CancelSpan CancelSpan "s" ["span"];
    GetSpan GetSpan "s" ["span"];
    ListSpans ListSpans "a{sv}" [];
    ListSpansAfter ListSpans "ta{sv}" ["after"];
    SumSpans SumSpans "a{sv}" [];
    GetInfo GetInfo "" [];
    GetBalance GetBalance "" [];
    ReadWindow ReadWindow "tt" ["from_ns", "to_ns"];
    Reload Reload "" [];
}

pub fn find_method(name: &str) -> Option<&'static DbusMethod> {
    METHODS.iter().find(|method| method.name == name)
}

impl DbusMethod {
    /// Converts the arguments of a message to a request. The inner error is one that the service answers, after it has
    /// checked access.
    pub fn parse_request(&self, body: &Body) -> Result<Result<Request, MethodError>, DbusError> {
        let signature = body.signature().to_string_no_parens();
        if signature != self.signature {
            return Err(DbusError::invalid_args(format!(
                "{} takes arguments with the signature {:?}, not {signature:?}",
                self.name, self.signature
            )));
        }
        if signature.is_empty() {
            return Ok(Request::parse(self.method, &Arguments::default()));
        }
        let malformed = |_| DbusError::invalid_args(format!("the arguments of {} are malformed", self.name));
        self.parse_arguments(&body.deserialize().map_err(malformed)?)
    }

    /// Converts arguments of the method's signature to a request.
    pub fn parse_arguments(
        &self,
        structure: &Structure<'_>,
    ) -> Result<Result<Request, MethodError>, DbusError> {
        let mut arguments = Arguments::default();
        let mut insert = |name, value| arguments.insert(name, value).map_err(|error| DbusError::from(&error));
        for (at, argument) in structure.fields().iter().enumerate() {
            match (self.arguments.get(at), argument) {
                (Some(name), argument) => insert(name, argument)?,
                (None, Variant::Dict(options)) => {
                    for (name, option) in options.iter() {
                        if let Variant::Str(name) = name {
                            insert(name.as_str(), option)?;
                        }
                    }
                }
                (None, _) => {}
            }
        }
        Ok(Request::parse(self.method, &arguments))
    }
}

#[derive(Debug)]
pub struct DbusProperty {
    pub name: &'static str,
    /// The method of the service whose reply contains it.
    pub method: MethodName,
    /// The field in that reply.
    pub field: &'static str,
}

macro_rules! properties {
    ($($name:literal $method:ident $field:literal;)*) => {
        pub const PROPERTIES: &[DbusProperty] = &[$(
            DbusProperty { name: $name, method: MethodName::$method, field: $field }
        ),*];
    };
}

properties! {
    "Version" GetInfo "version";
    "BootId" GetInfo "boot_id";
    "NowNs" GetInfo "now_ns";
    "HorizonNs" GetInfo "horizon_ns";
    "StartedNs" GetInfo "started_ns";
    "HistoryNs" GetInfo "history_ns";
    "Domains" GetInfo "domains";
    "Absent" GetInfo "absent";
    "Samplers" GetInfo "samplers";
    "Access" GetInfo "access";
    "Balance" GetBalance "balance";
}

pub fn find_property(name: &str) -> Option<&'static DbusProperty> {
    PROPERTIES.iter().find(|property| property.name == name)
}

/// All properties that the reply of this method contains.
pub fn properties_of(method: MethodName, mut reply: VariantDict) -> VariantDict {
    let of_method = PROPERTIES.iter().filter(|property| property.method == method);
    of_method.filter_map(|property| Some((property.name.to_owned(), reply.remove(property.field)?))).collect()
}

/// The introspection text, as installed.
pub const OBJECT_XML: &str = include_str!("../../systemd/dbus/org.wattspan.Wattspan1.xml");

/// The introspection text for a path: of the object, of one of its parents, or `None`.
pub fn describe(path: &str) -> Option<String> {
    if path == OBJECT_PATH {
        return Some(OBJECT_XML.to_owned());
    }
    let rest = OBJECT_PATH.strip_prefix(path.trim_end_matches('/'))?.strip_prefix('/')?;
    let next = rest.split('/').next()?;
    Some(format!("<node>\n  <node name=\"{next}\"/>\n</node>\n"))
}

#[cfg(test)]
mod tests {
    use wattspan_client::protocol::{
        CancelSpan, GetSpan, METER_INTERFACE, METHOD_NAMES, MarkPhase, OpenSpan,
    };

    use super::super::names::INTERFACE;
    use super::*;

    /// Streams are available on the socket only. A signal for each span would reach every listener and fill
    /// queues of the bus.
    const SOCKET_ONLY: &[&str] = &["org.wattspan.Meter.WatchSpans", "org.wattspan.Meter.WatchDomains"];

    #[test]
    fn every_service_method_is_on_the_bus_or_listed_as_socket_only() {
        for name in METHOD_NAMES.iter().filter(|name| name.starts_with(METER_INTERFACE)) {
            let here = METHODS.iter().any(|method| method.method.as_str() == *name);
            assert_ne!(here, SOCKET_ONLY.contains(name), "{name}");
        }
    }

    /// Splits `text` around the first part between `open` and `close`.
    fn split_between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
        text.split_once(open)?.1.split_once(close)
    }

    #[test]
    fn the_introspection_xml_describes_these_methods() {
        let (interface, _) =
            split_between(OBJECT_XML, &format!("<interface name=\"{INTERFACE}\">"), "</interface>").unwrap();
        let mut described = Vec::new();
        let mut rest = interface;
        while let Some((name, after)) = split_between(rest, "<method name=\"", "\"") {
            let (own, next) = match after.starts_with("/>") {
                true => ("", after),
                false => after.split_once("</method>").unwrap(),
            };
            let (mut takes, mut reply) = (String::new(), String::new());
            let mut arguments = own;
            while let Some((argument, later)) = split_between(arguments, "<arg ", "/>") {
                let (kind, _) = split_between(argument, "type=\"", "\"").unwrap();
                if argument.contains("direction=\"in\"") { &mut takes } else { &mut reply }.push_str(kind);
                arguments = later;
            }
            described.push((name.to_owned(), takes, reply));
            rest = next;
        }
        let reply = |method| match method {
            "OpenSpan" => "s",
            "CloseSpan" | "GetSpan" | "GetInfo" | "ReadWindow" | "ListSpansAfter" | "SumSpans" => "a{sv}",
            "ListSpans" | "GetBalance" => "aa{sv}",
            _ => "",
        };
        let row = |method: &DbusMethod| {
            (method.name.to_owned(), method.signature.to_owned(), reply(method.name).to_owned())
        };
        let mut ours: Vec<_> = METHODS.iter().map(row).collect();
        ours.sort();
        described.sort();
        assert_eq!(ours, described);
    }

    fn body(build: impl FnOnce(zbus::message::Builder) -> zbus::Result<zbus::Message>) -> Body {
        build(zbus::Message::method_call(OBJECT_PATH, "Any")).unwrap().body()
    }

    fn parse(name: &str, body: &Body) -> Result<Result<Request, MethodError>, DbusError> {
        find_method(name).unwrap().parse_request(body)
    }

    #[test]
    fn no_call_has_more_arguments_than_any_method_takes() {
        let options: std::collections::BTreeMap<String, Variant> =
            (0..40).map(|number| (format!("option_{number}"), Variant::from(7_u64))).collect();
        let many = body(|call| call.build(&options));
        let error = parse("OpenSpan", &many).unwrap_err();
        assert!(error.message.contains("one argument too many"), "{error:?}");
    }

    #[test]
    fn arguments_are_positional_and_options_are_named() {
        let options = std::collections::BTreeMap::from([("at_ns", Variant::from(7_u64))]);
        let phase = body(|call| call.build(&("a", "decode", options.clone())));
        let expected = MarkPhase { span: "a".into(), phase: "decode".into(), at_ns: Some(7) };
        assert_eq!(parse("MarkPhase", &phase), Ok(Ok(Request::MarkPhase(expected))));
        let alone = body(|call| call.build(&"a"));
        let span = || "a".to_owned();
        assert_eq!(parse("GetSpan", &alone), Ok(Ok(Request::GetSpan(GetSpan { span: span() }))));
        assert_eq!(parse("CancelSpan", &alone), Ok(Ok(Request::CancelSpan(CancelSpan { span: span() }))));
        let only = body(|call| call.build(&options));
        let expected = OpenSpan { at_ns: Some(7), ..OpenSpan::default() };
        assert_eq!(parse("OpenSpan", &only), Ok(Ok(Request::OpenSpan(expected))));
    }

    #[test]
    fn wrong_types_and_duplicate_arguments_are_rejected() {
        let wrong = body(|call| call.build(&7_u32));
        let error = parse("GetSpan", &wrong).unwrap_err();
        assert_eq!(error.name, "org.freedesktop.DBus.Error.InvalidArgs");
        let options = std::collections::BTreeMap::from([("span", Variant::from("b"))]);
        let twice = body(|call| call.build(&("a", options)));
        let error = parse("CloseSpan", &twice).unwrap_err();
        assert_eq!(error.message, "span: is given twice");
    }

    #[test]
    fn the_introspection_xml_describes_these_properties() {
        let described: Vec<&str> =
            OBJECT_XML.split("<property name=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(described, PROPERTIES.iter().map(|property| property.name).collect::<Vec<_>>());
    }

    #[test]
    fn only_the_object_and_its_parent_paths_are_described() {
        assert!(describe("/").unwrap().contains("name=\"org\""));
        assert!(describe("/org").unwrap().contains("name=\"wattspan\""));
        assert!(describe("/org/wattspan").unwrap().contains("name=\"Wattspan1\""));
        assert_eq!(describe(OBJECT_PATH).as_deref(), Some(OBJECT_XML));
        for nowhere in ["/org/watt", "/other", "/org/wattspan/Wattspan1/span"] {
            assert_eq!(describe(nowhere), None, "{nowhere}");
        }
    }
}
