//! The one table that ties a method's name to what it takes and gives.
//!
//! Owns the names. A test compares them with the descriptions that introspection serves.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::reply::{
    Balances, DaemonInfo, DomainSnapshot, EmptyReply, InterfaceDescription, OpenedSpan, ReloadReply,
    ServiceInfo, SpanAccount, SpanAccounts, WindowEnergy,
};
use super::request::{
    CancelSpan, CloseSpan, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan, ListSpans,
    MarkPhase, OpenSpan, ReadWindow, Reload, SetWeight, WatchDomains, WatchSpans,
};

/// A method: its parameters are the type itself, so that a caller cannot pair the wrong ones.
pub trait Method: Serialize + DeserializeOwned {
    /// Interface and method, joined by a dot.
    const NAME: &'static str;
    /// What it gives.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($parameters:ident = $name:literal -> $reply:ty;)*) => {
        $(impl Method for $parameters {
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*

        /// Every method there is, by name.
        pub const METHOD_NAMES: &[&str] = &[$($name),*];

        /// A method's name as a value, so that the compiler insists on a place for each in every table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum MethodName {
            $(#[doc = $name] $parameters,)*
        }

        impl MethodName {
            /// The method of this name: interface and method, joined by a dot.
            #[inline]
            pub fn parse(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$parameters),)*
                    _ => None,
                }
            }

            /// Interface and method, joined by a dot.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$parameters => $name,)*
                }
            }
        }
    };
}

methods! {
    GetInfo = "org.wattspan.Meter.GetInfo" -> DaemonInfo;
    OpenSpan = "org.wattspan.Meter.OpenSpan" -> OpenedSpan;
    MarkPhase = "org.wattspan.Meter.MarkPhase" -> EmptyReply;
    SetWeight = "org.wattspan.Meter.SetWeight" -> EmptyReply;
    CloseSpan = "org.wattspan.Meter.CloseSpan" -> SpanAccount;
    CancelSpan = "org.wattspan.Meter.CancelSpan" -> EmptyReply;
    GetSpan = "org.wattspan.Meter.GetSpan" -> SpanAccount;
    ListSpans = "org.wattspan.Meter.ListSpans" -> SpanAccounts;
    WatchSpans = "org.wattspan.Meter.WatchSpans" -> SpanAccount;
    WatchDomains = "org.wattspan.Meter.WatchDomains" -> DomainSnapshot;
    ReadWindow = "org.wattspan.Meter.ReadWindow" -> WindowEnergy;
    GetBalance = "org.wattspan.Meter.GetBalance" -> Balances;
    Reload = "org.wattspan.Meter.Reload" -> ReloadReply;
    GetServiceInfo = "org.varlink.service.GetInfo" -> ServiceInfo;
    GetInterfaceDescription = "org.varlink.service.GetInterfaceDescription" -> InterfaceDescription;
}

#[cfg(test)]
mod tests {
    use super::super::{METER_DESCRIPTION, METER_INTERFACE, SERVICE_DESCRIPTION, SERVICE_INTERFACE};
    use super::*;

    fn described(interface: &str, text: &str) -> Vec<String> {
        let named = text.lines().filter_map(|line| line.strip_prefix("method ")?.split_once('('));
        named.map(|(name, _)| format!("{interface}.{name}")).collect()
    }

    #[test]
    fn method_names_match_the_descriptions() {
        let mut described = [
            described(METER_INTERFACE, METER_DESCRIPTION),
            described(SERVICE_INTERFACE, SERVICE_DESCRIPTION),
        ]
        .concat();
        let mut ours: Vec<String> = METHOD_NAMES.iter().map(|name| (*name).to_owned()).collect();
        described.sort();
        ours.sort();
        assert_eq!(ours, described);
        for name in METHOD_NAMES {
            assert_eq!(MethodName::parse(name).map(MethodName::as_str), Some(*name));
        }
        assert_eq!(MethodName::parse("org.wattspan.Meter.openspan"), None);
    }
}
