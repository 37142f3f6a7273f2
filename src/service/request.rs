//! A call of a method with its parameters, whatever transport it came by.
//!
//! Every transport converts its messages to these types: names, types and defaults of parameters have one place of truth,
//! the structs of the contract.

use serde::Serialize;
use wattspan_client::protocol::{
    CancelSpan, CloseSpan, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo, GetSpan, ListSpans,
    MarkPhase, Method, MethodError, MethodName, OpenSpan, ReadWindow, Reload, SetWeight, SumSpans,
    WatchDomains, WatchSpans,
};

/// The parameters of a call in the form of a transport.
pub trait ParameterSource {
    /// Parses the parameters of a method.
    ///
    /// # Errors
    /// `InvalidParameter` names the first parameter that is unknown, missing, or of the wrong type.
    fn parse<M: Method>(&self) -> Result<M, MethodError>;
}

macro_rules! requests {
    ($($method:ident)*) => {
        /// A method with its parameters.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Request {
            $(#[doc = concat!("The method ", stringify!($method), ".")] $method($method),)*
        }

        impl Request {
            /// Parses the parameters of the method of this name.
            ///
            /// # Errors
            /// See [`ParameterSource::parse`].
            pub fn parse(name: MethodName, parameters: &impl ParameterSource) -> Result<Self, MethodError> {
                Ok(match name {
                    $(MethodName::$method => Self::$method(parameters.parse()?),)*
                })
            }
        }
    };
}

requests! {
    GetInfo OpenSpan MarkPhase SetWeight CloseSpan CancelSpan GetSpan ListSpans SumSpans WatchSpans WatchDomains ReadWindow GetBalance
    Reload GetServiceInfo GetInterfaceDescription
}
