//! The methods of `org.wattspan.Wattspan1`: what each takes on the bus, and which call to the service it is.
//!
//! Owns the one table between the two. A method on the bus is a method of the service with the needed parameters in
//! order and the others by name; a test holds the table against the introspection text and against the service's own
//! list, so that a method can be missing on the bus only on purpose.

use serde_json::{Map, Value};
use zbus::message::Body;
use zbus::{Structure, Variant};

use super::denial::Denial;
use super::value;
use crate::protocol::{
    CancelSpan, CloseSpan, GetBalance, GetInfo, GetSpan, ListSpans, MarkPhase, Method, OpenSpan, ReadWindow,
    Refusal, SetWeight,
};

/// The service's method that reads the configuration again.
pub const RELOAD: &str = "org.wattspan.Meter.Reload";

/// What becomes of the service's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// An empty answer.
    Nothing,
    /// This field, a text.
    Text(&'static str),
    /// This field, an object.
    Object(&'static str),
    /// This field, a list of objects.
    List(&'static str),
    /// All of it.
    Whole,
}

/// A method on the bus.
#[derive(Debug)]
pub struct Member {
    /// Its name on the bus.
    pub name: &'static str,
    /// The service's method.
    pub method: &'static str,
    /// The types of its arguments.
    pub signature: &'static str,
    /// What the leading arguments are called; a last one beyond them holds the options.
    pub arguments: &'static [&'static str],
    /// What it answers.
    pub gives: Gives,
}

macro_rules! members {
    ($($name:literal $method:expr, $signature:literal $arguments:expr => $gives:expr;)*) => {
        /// Every method.
        pub const MEMBERS: &[Member] = &[$(
            Member { name: $name, method: $method, signature: $signature, arguments: &$arguments, gives: $gives }
        ),*];
    };
}

members! {
    "OpenSpan" OpenSpan::NAME, "a{sv}" [] => Gives::Text("span");
    "CloseSpan" CloseSpan::NAME, "sa{sv}" ["span"] => Gives::Object("account");
    "MarkPhase" MarkPhase::NAME, "ssa{sv}" ["span", "phase"] => Gives::Nothing;
    "SetWeight" SetWeight::NAME, "sda{sv}" ["span", "weight"] => Gives::Nothing;
    "CancelSpan" CancelSpan::NAME, "s" ["span"] => Gives::Nothing;
    "GetSpan" GetSpan::NAME, "s" ["span"] => Gives::Object("account");
    "ListSpans" ListSpans::NAME, "a{sv}" [] => Gives::List("accounts");
    "GetInfo" GetInfo::NAME, "" [] => Gives::Whole;
    "GetBalance" GetBalance::NAME, "" [] => Gives::List("balance");
    "ReadWindow" ReadWindow::NAME, "tt" ["from_ns", "to_ns"] => Gives::Whole;
    "Reload" RELOAD, "" [] => Gives::Nothing;
}

/// The method of this name.
pub fn member(name: &str) -> Option<&'static Member> {
    MEMBERS.iter().find(|member| member.name == name)
}

impl Member {
    /// The parameters of the service's method, from a message's body.
    pub fn parameters(&self, body: &Body) -> Result<Map<String, Value>, Denial> {
        let signature = body.signature().to_string_no_parens();
        if signature != self.signature {
            return Err(Denial::invalid_arguments(format!(
                "{} takes arguments of the types {:?}, not {signature:?}",
                self.name, self.signature
            )));
        }
        let mut parameters = Map::new();
        if signature.is_empty() {
            return Ok(parameters);
        }
        let malformed =
            |_| Denial::invalid_arguments(format!("the arguments of {} are malformed", self.name));
        let arguments: Structure = body.deserialize().map_err(malformed)?;
        for (at, argument) in arguments.fields().iter().enumerate() {
            match (self.arguments.get(at), argument) {
                (Some(name), argument) => insert(&mut parameters, name, argument)?,
                (None, Variant::Dict(options)) => {
                    for (name, option) in options.iter() {
                        if let Variant::Str(name) = name {
                            insert(&mut parameters, name.as_str(), option)?;
                        }
                    }
                }
                (None, _) => {}
            }
        }
        Ok(parameters)
    }
}

fn insert(parameters: &mut Map<String, Value>, name: &str, argument: &Variant) -> Result<(), Denial> {
    let wrong = |reason: String| Denial::from(&Refusal::InvalidValue { field: name.to_owned(), reason });
    let said = value::words(argument).map_err(|unspeakable| wrong(unspeakable.to_string()))?;
    match parameters.insert(name.to_owned(), said) {
        None => Ok(()),
        Some(_) => Err(wrong("is given twice".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::introspection::OBJECT;
    use super::super::{INTERFACE, PATH};
    use super::*;
    use crate::protocol::{METER, NAMES};

    /// Streams are for the socket: a signal for each span would reach everybody who listens, and fill queues of the bus.
    const NOT_ON_THE_BUS: &[&str] = &["org.wattspan.Meter.WatchSpans", "org.wattspan.Meter.WatchDomains"];

    #[test]
    fn every_method_of_the_meter_is_on_the_bus_or_left_out_on_purpose() {
        for name in NAMES.iter().filter(|name| name.starts_with(METER)) {
            let here = MEMBERS.iter().any(|member| member.method == *name);
            assert_ne!(here, NOT_ON_THE_BUS.contains(name), "{name}");
        }
    }

    /// The text between two marks.
    fn within<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
        text.split_once(open)?.1.split_once(close)
    }

    #[test]
    fn the_introspection_text_describes_this_table() {
        let (interface, _) =
            within(OBJECT, &format!("<interface name=\"{INTERFACE}\">"), "</interface>").unwrap();
        let mut described = Vec::new();
        let mut rest = interface;
        while let Some((name, after)) = within(rest, "<method name=\"", "\"") {
            let (own, next) = match after.starts_with("/>") {
                true => ("", after),
                false => after.split_once("</method>").unwrap(),
            };
            let (mut takes, mut gives) = (String::new(), String::new());
            let mut arguments = own;
            while let Some((argument, later)) = within(arguments, "<arg ", "/>") {
                let (kind, _) = within(argument, "type=\"", "\"").unwrap();
                if argument.contains("direction=\"in\"") { &mut takes } else { &mut gives }.push_str(kind);
                arguments = later;
            }
            described.push((name.to_owned(), takes, gives));
            rest = next;
        }
        let answers = |gives| match gives {
            Gives::Nothing => "",
            Gives::Text(_) => "s",
            Gives::Object(_) | Gives::Whole => "a{sv}",
            Gives::List(_) => "aa{sv}",
        };
        let row = |member: &Member| {
            (member.name.to_owned(), member.signature.to_owned(), answers(member.gives).to_owned())
        };
        let mut ours: Vec<_> = MEMBERS.iter().map(row).collect();
        ours.sort();
        described.sort();
        assert_eq!(ours, described);
    }

    fn body(build: impl FnOnce(zbus::message::Builder) -> zbus::Result<zbus::Message>) -> Body {
        build(zbus::Message::method_call(PATH, "Any")).unwrap().body()
    }

    #[test]
    fn arguments_come_by_place_and_options_by_name() {
        let options = std::collections::BTreeMap::from([("at_ns", Variant::from(7_u64))]);
        let phase = body(|call| call.build(&("a", "decode", options.clone())));
        let parameters = member("MarkPhase").unwrap().parameters(&phase).unwrap();
        assert_eq!(Value::from(parameters), serde_json::json!({"span": "a", "phase": "decode", "at_ns": 7}));
        let alone = body(|call| call.build(&"a"));
        let parameters = member("GetSpan").unwrap().parameters(&alone).unwrap();
        assert_eq!(Value::from(parameters), serde_json::json!({"span": "a"}));
        let only = body(|call| call.build(&options));
        let parameters = member("OpenSpan").unwrap().parameters(&only).unwrap();
        assert_eq!(Value::from(parameters), serde_json::json!({"at_ns": 7}));
    }

    #[test]
    fn wrong_types_and_an_argument_given_twice_are_refused() {
        let wrong = body(|call| call.build(&7_u32));
        let denial = member("GetSpan").unwrap().parameters(&wrong).unwrap_err();
        assert_eq!(denial.name, "org.freedesktop.DBus.Error.InvalidArgs");
        let options = std::collections::BTreeMap::from([("span", Variant::from("b"))]);
        let twice = body(|call| call.build(&("a", options)));
        let denial = member("CloseSpan").unwrap().parameters(&twice).unwrap_err();
        assert_eq!(denial.words, "span: is given twice");
    }
}
