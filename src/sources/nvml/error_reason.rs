//! Reasons and remedies for NVML errors, and the errors that mean a lost board.

use std::ffi::OsStr;

use nvml_wrapper::error::NvmlError;

/// The reason for missing NVML, and the remedy.
pub fn library_error_reason(error: &NvmlError, library: &OsStr) -> String {
    let library = library.display();
    match error {
        NvmlError::LibloadingError(error) => {
            let message = root_cause(error);
            // The loader's text begins with the missing library: this one, or a dependency.
            let which = library.to_string();
            let prefix = if message.starts_with(&which) { String::new() } else { format!("{which}: ") };
            format!(
                "{prefix}{message}; it is part of NVIDIA's driver: install the driver, or set the library's path: \
                 wattspand --nvml-library, or nvml_library under [source] in the configuration"
            )
        }
        NvmlError::FailedToLoadSymbol(symbol) => {
            format!("{library} is too old, or is not NVML: {symbol}; install a newer NVIDIA driver")
        }
        error => board_error_reason(error),
    }
}

/// The reason for a failed call to a board, and the remedy.
pub fn board_error_reason(error: &NvmlError) -> String {
    let remedy = match error {
        NvmlError::DriverNotLoaded => "load it with `modprobe nvidia`",
        NvmlError::LibRmVersionMismatch => {
            "the driver was updated while it was loaded: reboot, or reload the nvidia modules"
        }
        NvmlError::NoPermission | NvmlError::OperatingSystem => {
            "let the daemon's user read /dev/nvidiactl and /dev/nvidia0, and allow them in its service unit"
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => "see the kernel's log for `Xid`, and reboot",
        NvmlError::InsufficientPower => "attach the board's power cables",
        _ => "see the kernel's log for `NVRM`",
    };
    format!("NVML: {error}; {remedy}")
}

/// Whether the handle is invalid after this error, so that the library must be initialised again. Other errors concern one
/// value only.
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

/// The loader's text, which contains the path and the cause.
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}
