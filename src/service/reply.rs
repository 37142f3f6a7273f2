//! The reply to a call, before a transport encodes it.

use serde::{Deserialize, Serialize};
use wattspan_client::account::Account;
use wattspan_client::protocol::{
    Balances, DaemonInfo, EmptyReply, InterfaceDescription, MethodError, OpenedSpan, ReloadReply,
    ServiceInfo, SpanAccount, SpanAccounts, SpanSums, WindowEnergy,
};

/// A reply or an error.
pub type MethodResult = Result<Reply, MethodError>;

/// The replies of the contract. Serialized as the reply itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each is the struct of the contract that it contains")]
pub enum Reply {
    Empty(EmptyReply),
    Opened(OpenedSpan),
    Account(Box<SpanAccount>),
    Accounts(SpanAccounts),
    Sums(Box<SpanSums>),
    Info(Box<DaemonInfo>),
    Window(WindowEnergy),
    Balances(Balances),
    Reload(ReloadReply),
    ServiceInfo(ServiceInfo),
    InterfaceDescription(InterfaceDescription),
    /// A complete message with the reply of ListSpans with `after`, which the store's thread has encoded.
    #[serde(skip)]
    Encoded(Vec<u8>),
}

impl Reply {
    /// A reply without fields.
    pub const EMPTY: Self = Self::Empty(EmptyReply {});

    /// The accounts of an encoded reply; `None` if it is not one.
    pub fn decode_accounts(message: &[u8]) -> Option<SpanAccounts> {
        #[derive(Deserialize)]
        struct Message {
            parameters: SpanAccounts,
        }
        let text = message.strip_suffix(b"\0")?;
        serde_json::from_slice::<Message>(text).ok().map(|message| message.parameters)
    }

    /// The reply with one account.
    pub fn account(account: Account) -> Self {
        Self::Account(Box::new(SpanAccount { account }))
    }
}
