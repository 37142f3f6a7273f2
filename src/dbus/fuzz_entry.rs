//! The parsers of D-Bus messages, under names that the fuzz targets can call (docs/fuzzing.md).

use wattspan_client::protocol::MethodError;
use zbus::Structure;
use zbus::wire::Endian;
use zbus::wire::serialized::{Context, Data};

use super::interface::METHODS;
use super::{capped_socket, interface};
use crate::service::Request;

/// The names of the methods on the bus.
pub fn method_names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}

/// The request of a call whose body has these bytes, little endian: `None` if they do not have the method's signature, the
/// outer error if an argument cannot be one.
pub fn request(method: &str, body: &[u8]) -> Option<Result<Result<Request, MethodError>, String>> {
    let method = interface::find_method(method).filter(|method| !method.signature.is_empty())?;
    let data = Data::new(body, Context::new(Endian::Little, 0));
    let signature = format!("({})", method.signature);
    let (structure, _): (Structure<'_>, usize) =
        data.deserialize_for_dynamic_signature(signature.as_str()).ok()?;
    Some(method.parse_arguments(&structure).map_err(|error| error.message))
}

/// The lengths of header and body of a message that begins with these bytes.
pub fn message_lengths(fixed_header: &[u8; 16]) -> (usize, usize) {
    capped_socket::message_lengths(fixed_header)
}
