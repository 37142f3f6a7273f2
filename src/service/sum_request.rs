//! The parameters of SumSpans, checked once.

use std::sync::Arc;

use wattspan_client::account::SpanState;
use wattspan_client::protocol::{Access, MethodError, SumSpans};

use super::access::Peer;
use super::coarse_grid;
use crate::store::{Filter, SumField, SumQuery};

/// Zones are at most 14 hours from UTC; a day is the limit.
const MAX_UTC_OFFSET_MIN: i64 = 24 * 60 - 1;

/// The query of a call. A caller without telemetry access gets own accounts, with coarse access only coarse ones.
///
/// # Errors
/// `InvalidValue` for a value that is not valid. `AccessDenied`: the accounts of another user.
pub(crate) fn parse_query(peer: &Peer, call: &SumSpans) -> Result<SumQuery, MethodError> {
    let by = parse_fields(call.by.as_deref().unwrap_or_default())?;
    if call.state == Some(SpanState::Open) {
        return Err(invalid("state", "cannot be open: open spans are counted beside the sums"));
    }
    let filter = Filter {
        since_unix_ns: parse_time("since_unix_ns", call.since_unix_ns)?,
        name: call.name.clone(),
        attributes: call.attributes.clone().unwrap_or_default(),
        state: call.state,
    };
    Ok(SumQuery {
        uid: parse_uid(peer, call.uid)?,
        filter,
        until_unix_ns: parse_time("until_unix_ns", call.until_unix_ns)?,
        model: call.model.clone(),
        is_visible: (peer.access < Access::Span).then_some(coarse_grid::is_coarse),
        utc_offset_s: parse_utc_offset(&by, call.utc_offset_min)? * 60,
        by,
        is_cancelled: Arc::default(),
        progress: Arc::default(),
    })
}

fn invalid(field: &str, reason: &str) -> MethodError {
    MethodError::InvalidValue { field: field.to_owned(), reason: reason.to_owned() }
}

fn parse_fields(names: &[String]) -> Result<Vec<SumField>, MethodError> {
    let mut by = Vec::new();
    for name in names {
        let field = SumField::parse(name)
            .ok_or_else(|| invalid("by", "has a value that is none of model, name, user, operation, day"))?;
        if by.contains(&field) {
            return Err(invalid("by", "has a value twice"));
        }
        by.push(field);
    }
    Ok(by)
}

fn parse_time(field: &str, unix_ns: Option<i64>) -> Result<Option<u64>, MethodError> {
    let negative = |_| invalid(field, "is negative; omit it for all accounts");
    unix_ns.map(u64::try_from).transpose().map_err(negative)
}

/// The user whose accounts are summed; `None` for all users.
fn parse_uid(peer: &Peer, uid: Option<i64>) -> Result<Option<u32>, MethodError> {
    let wanted = uid.map(u32::try_from).transpose();
    let wanted = wanted.map_err(|_| invalid("uid", "is no user ID; omit it for all users"))?;
    match peer.uid_filter() {
        Some(own) if wanted.is_some_and(|wanted| wanted != own) => {
            Err(MethodError::AccessDenied { needs: Access::Telemetry.as_str().to_owned() })
        }
        own => Ok(wanted.or(own)),
    }
}

/// The time zone of the days, in minutes. It is never assumed.
fn parse_utc_offset(by: &[SumField], minutes: Option<i64>) -> Result<i64, MethodError> {
    let field = "utc_offset_min";
    match (by.contains(&SumField::Day), minutes) {
        (true, None) => Err(invalid(field, "is missing; sums by day need it: 0 for UTC, 60 for UTC+01:00")),
        (false, Some(_)) => Err(invalid(field, "belongs to sums by day")),
        (_, None) => Ok(0),
        (_, Some(minutes)) if minutes.unsigned_abs() <= MAX_UTC_OFFSET_MIN.unsigned_abs() => Ok(minutes),
        (_, Some(_)) => Err(invalid(field, "is more than a day from UTC")),
    }
}
