//! NVML calls that nvml-wrapper lacks: field values with a scope, on a board with its own library handle.
//!
//! Owns one reference to NVML's initialisation and one board's handle; drop releases both. Field numbers are passed
//! to NVML unchanged: the wrapper renumbers some by the driver's version, which may be unknown, and it has no scope.
#![allow(unsafe_code)]

use std::ffi::{OsStr, c_int};

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t, nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE as DOUBLE,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT as SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG as SIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT as UNSIGNED_SHORT,
};

/// The default library, found by the dynamic loader.
pub const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";

/// Largest number of fields in one call.
pub const MAX_FIELDS: usize = 4;

/// A field and its scope, the part of the board (`scopeId` in nvml.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvmlField {
    /// `NVML_FI_DEV_…`.
    pub id: u32,
    /// `NVML_POWER_SCOPE_…`.
    pub scope: u32,
}

/// The value of one field, or its error.
pub type FieldResult = Result<u64, NvmlError>;

/// Loads the library and initialises it.
///
/// # Errors
/// The library is missing or is not NVML, or the initialisation failed.
pub fn load_library(library: &OsStr) -> Result<Nvml, NvmlError> {
    let nvml = Nvml::builder().lib_path(library).init()?;
    if let Err(missing) = &nvml.lib().nvmlShutdown {
        // The wrapper's drop calls it unchecked and would panic.
        let missing = NvmlError::FailedToLoadSymbol(missing.to_string());
        std::mem::forget(nvml);
        return Err(missing);
    }
    Ok(nvml)
}

/// One board with its library.
pub struct NvmlBoard {
    nvml: Nvml,
    /// Valid as long as `nvml` lives.
    handle: nvmlDevice_t,
}

// SAFETY: NVML's functions may be called from any thread (nvml.h: the API is thread safe), and a handle is not bound
// to a thread; the wrapper's own `Nvml` and `Device` are `Send` too.
unsafe impl Send for NvmlBoard {}

impl NvmlBoard {
    /// Loads the library and finds the board with this UUID, independent of its index.
    ///
    /// # Errors
    /// As for [`load_library`]; `NotFound` if no board has the UUID.
    pub fn find(library: &OsStr, uuid: &str) -> Result<NvmlBoard, NvmlError> {
        let nvml = load_library(library)?;
        let device = nvml.device_by_uuid(uuid)?;
        // SAFETY: the handle is stored with the library that returned it, and used with no other.
        let handle = unsafe { device.handle() };
        Ok(NvmlBoard { nvml, handle })
    }

    /// The wrapper's handle of the board.
    pub fn device(&self) -> Device<'_> {
        // SAFETY: `handle` came from this `nvml`, which outlives the borrow.
        unsafe { Device::new(self.handle, &self.nvml) }
    }

    /// Reads up to [`MAX_FIELDS`] fields in one call, with one result for each in `answers`, in the same order.
    /// Fields beyond that number, or beyond the length of `answers`, are ignored.
    ///
    /// # Errors
    /// The call failed as a whole: the symbol is missing, or the board or the driver is unavailable.
    pub fn query_fields(&self, fields: &[NvmlField], answers: &mut [FieldResult]) -> Result<(), NvmlError> {
        let call = nvml_sym(self.nvml.lib().nvmlDeviceGetFieldValues.as_ref())?;
        // SAFETY: a C struct of integers and a union of plain numbers, for which all zeroes are a value.
        let mut values: [nvmlFieldValue_t; MAX_FIELDS] = unsafe { std::mem::zeroed() };
        let count = fields.len().min(answers.len()).min(MAX_FIELDS);
        for (value, field) in values.iter_mut().zip(&fields[..count]) {
            (value.fieldId, value.scopeId) = (field.id, field.scope);
        }
        // SAFETY: the handle is this library's, and `values` has room for the `count` entries (at most MAX_FIELDS)
        // that the call fills.
        nvml_try(unsafe { call(self.handle, count as c_int, values.as_mut_ptr()) })?;
        for (answer, value) in answers.iter_mut().zip(&values[..count]) {
            *answer = nvml_try(value.nvmlReturn).and_then(|()| value_as_u64(value));
        }
        Ok(())
    }
}

/// The value as an integer; its type varies by driver. Rejects negative values and fractions.
fn value_as_u64(value: &nvmlFieldValue_t) -> FieldResult {
    let of = &value.value;
    // SAFETY: all members of the union are plain numbers, valid for any bits, and the struct was zeroed before the
    // call, so that every byte is initialised; `valueType` is the member that the driver wrote.
    let number = unsafe {
        match value.valueType {
            DOUBLE if of.dVal >= 0.0 => Some(of.dVal as u64),
            UNSIGNED_INT => Some(u64::from(of.uiVal)),
            UNSIGNED_LONG => Some(of.ulVal),
            UNSIGNED_LONG_LONG => Some(of.ullVal),
            SIGNED_LONG_LONG => u64::try_from(of.sllVal).ok(),
            SIGNED_INT => u64::try_from(of.siVal).ok(),
            UNSIGNED_SHORT => Some(u64::from(of.usVal)),
            _ => None,
        }
    };
    number.ok_or(NvmlError::UnexpectedVariant(value.valueType))
}
