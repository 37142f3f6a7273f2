//! The calls to the System Management Controller through IOKit.
//!
//! Owns one connection, and the entries of IOKit's registry that lead to it; each is released once. Reads only: the
//! controller's write commands are not defined here.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use super::functions_ffi::{AppleFunctions, IoKitFunctions, MachPort};
use super::smc_protocol::{SELECTOR, SmcParam};

/// The service's name. Intel Macs have one entry of this name, Apple silicon has several.
const SERVICE: &CStr = c"AppleSMC";
/// The name of the entry to use on Apple silicon.
const ENDPOINT: &CStr = c"AppleSMCKeysEndpoint";

/// `io_name_t`.
const NAME_BYTES: usize = 128;

/// The reason for a failed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSmcError {
    /// The machine has no controller, as in a virtual machine.
    NotFound,
    /// IOKit's error (`kern_return_t`).
    Refused(i32),
}

pub struct SmcConnection {
    kit: IoKitFunctions,
    port: MachPort,
    apple_silicon: bool,
}

/// An entry of the registry, or an iterator over entries.
struct RegistryEntry<'a>(&'a IoKitFunctions, MachPort);

impl Drop for RegistryEntry<'_> {
    fn drop(&mut self) {
        // SAFETY: the one reference to this entry, which is not used afterwards.
        unsafe { (self.0.release)(self.1) };
    }
}

impl SmcConnection {
    /// Opens the controller.
    ///
    /// # Errors
    /// The controller is missing, or IOKit refuses.
    pub fn open(calls: &AppleFunctions) -> Result<SmcConnection, OpenSmcError> {
        let kit = &calls.kit;
        let mut found: MachPort = 0;
        // SAFETY: a name that ends with NUL. The second call consumes the dictionary of the first, also on failure.
        let status = unsafe {
            let wanted = (kit.matching)(SERVICE.as_ptr());
            if wanted.is_null() {
                return Err(OpenSmcError::NotFound);
            }
            (kit.services)(0, wanted, &raw mut found)
        };
        if status != 0 {
            return Err(OpenSmcError::Refused(status));
        }
        let entries = RegistryEntry(kit, found);
        let (mut refused, mut plain) = (None, None);
        // SAFETY: a live iterator; we own each entry that it returns.
        while let entry @ 1.. = unsafe { (kit.next)(entries.1) } {
            let entry = RegistryEntry(kit, entry);
            let name = entry.name();
            if name.as_deref() == Some(ENDPOINT) {
                match entry.connect(calls) {
                    Ok(mut connection) => {
                        connection.apple_silicon = true;
                        return Ok(connection);
                    }
                    Err(status) => refused = Some(status),
                }
            } else if name.as_deref() == Some(SERVICE) && plain.is_none() {
                plain = Some(entry);
            }
        }
        match plain.map(|entry| entry.connect(calls)) {
            Some(Ok(connection)) => Ok(connection),
            Some(Err(status)) => Err(OpenSmcError::Refused(status)),
            None => Err(refused.map_or(OpenSmcError::NotFound, OpenSmcError::Refused)),
        }
    }

    /// Whether this is the controller of Apple silicon, from the name of the entry that opened.
    pub fn is_apple_silicon(&self) -> bool {
        self.apple_silicon
    }

    /// Sends a request and returns the reply, whose `result` is the controller's status.
    ///
    /// # Errors
    /// IOKit's error (`kern_return_t`); [`SHORT_ANSWER`] if the reply is incomplete.
    pub fn call(&self, param: &SmcParam) -> Result<SmcParam, i32> {
        let mut answer = SmcParam::default();
        let mut length = size_of::<SmcParam>();
        // SAFETY: both are structs of the 80 bytes that the controller expects (asserted in smc_protocol), alive
        // during the call, and of integers only, so that any bytes are valid; the call writes at most `length`.
        let status = unsafe {
            (self.kit.call)(
                self.port,
                SELECTOR,
                (&raw const *param).cast(),
                size_of::<SmcParam>(),
                (&raw mut answer).cast(),
                &raw mut length,
            )
        };
        match status {
            0 if length == size_of::<SmcParam>() => Ok(answer),
            0 => Err(SHORT_ANSWER),
            refused => Err(refused),
        }
    }
}

/// `kIOReturnUnderrun`.
pub const SHORT_ANSWER: i32 = 0xe000_02e7_u32 as i32;

impl Drop for SmcConnection {
    fn drop(&mut self) {
        // SAFETY: opened by us, and not used afterwards.
        unsafe { (self.kit.close)(self.port) };
    }
}

impl RegistryEntry<'_> {
    fn name(&self) -> Option<std::ffi::CString> {
        let mut buffer = [0 as c_char; NAME_BYTES];
        // SAFETY: a live entry, and a buffer as long as `io_name_t`.
        let status = unsafe { (self.0.name_of)(self.1, buffer.as_mut_ptr()) };
        // SAFETY: `c_char` and `u8` have the same size and alignment; the array is borrowed unchanged.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), NAME_BYTES) };
        (status == 0).then(|| CStr::from_bytes_until_nul(bytes).ok().map(CStr::to_owned))?
    }

    fn connect(&self, calls: &AppleFunctions) -> Result<SmcConnection, i32> {
        let mut port: MachPort = 0;
        // SAFETY: a live entry, this process's own port, and an output pointer for the connection, which we own.
        let status = unsafe { (self.0.open)(self.1, calls.task, 0, &raw mut port) };
        if status == 0 { Ok(SmcConnection { kit: *self.0, port, apple_silicon: false }) } else { Err(status) }
    }
}
