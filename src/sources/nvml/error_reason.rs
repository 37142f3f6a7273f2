//! What NVML's refusals mean: in words for the administrator, and whether the board is gone with them.
//!
//! Owns the reason and the mend of each. Decides only from the error.

use std::ffi::OsStr;

use nvml_wrapper::error::NvmlError;

/// Why there is no NVML, and what would mend it.
pub fn library_error_reason(error: &NvmlError, library: &OsStr) -> String {
    let library = library.display();
    match error {
        NvmlError::LibloadingError(error) => {
            let message = root_cause(error);
            // The loader's words begin with the library that is missing: this one, or another that it needs.
            let which = library.to_string();
            let prefix = if message.starts_with(&which) { String::new() } else { format!("{which}: ") };
            format!(
                "{prefix}{message}; it comes with NVIDIA's driver: install that, or name the library: wattspand --nvml-library, or nvml_library under [source] in the configuration"
            )
        }
        NvmlError::FailedToLoadSymbol(symbol) => {
            format!("{library} is too old, or is no NVML: {symbol}; install a newer NVIDIA driver")
        }
        error => board_error_reason(error),
    }
}

/// Why a board does not answer, and what would mend it.
pub fn board_error_reason(error: &NvmlError) -> String {
    let remedy = match error {
        NvmlError::DriverNotLoaded => "load it with `modprobe nvidia`",
        NvmlError::LibRmVersionMismatch => {
            "the driver was updated while it ran: reboot, or reload the nvidia modules"
        }
        NvmlError::NoPermission | NvmlError::OperatingSystem => {
            "let the meter's user read /dev/nvidiactl and /dev/nvidia0, and its service unit allow them"
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => "see the kernel's log for `Xid`, and reboot",
        NvmlError::InsufficientPower => "attach the board's power cables",
        _ => "see the kernel's log for `NVRM`",
    };
    format!("NVML says: {error}; {remedy}")
}

/// Whether the handle is worth nothing after this answer, so that only a new start of the library can help. Everything
/// else is the matter of one value.
pub fn is_board_lost(error: &NvmlError) -> bool {
    use NvmlError as E;
    !matches!(
        error,
        E::NotSupported
            | E::NoPermission
            | E::NoData
            | E::Timeout
            | E::InUse
            | E::InsufficientMemory
            | E::InsufficientSize(_)
            | E::FunctionNotFound
            | E::FailedToLoadSymbol(_)
            | E::UnexpectedVariant(_)
    )
}

/// The loader's own words, which say the path and the cause.
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}
