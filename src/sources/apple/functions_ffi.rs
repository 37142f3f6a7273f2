//! The table of Apple's C functions that the sources `ioreport` and `smc` call.
//!
//! Owns the function types for all systems: `linked_functions_ffi` fills the table from the system's libraries,
//! `loaded_functions_ffi` from a library that replaces them. The types of CoreFoundation and IOKit are those of Apple's
//! public headers. IOReport has no public header; its types are those that independent programs use.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

/// Any CoreFoundation object (`CFTypeRef`); null means none.
pub type CfRef = *const c_void;

/// An IOKit object in this process (`io_object_t`, a Mach port name); 0 means none.
pub type MachPort = u32;

/// CoreFoundation's constant for UTF-8.
pub const CF_STRING_ENCODING_UTF8: u32 = 0x0800_0100;

/// Defines a struct of C functions and its constructor from symbol names.
macro_rules! calls {
    ($(#[$about:meta])* $table:ident { $($symbol:ident as $field:ident: fn($($argument:ty),*) $(-> $answer:ty)?;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub struct $table {
            $(#[doc = concat!("`", stringify!($symbol), "`")]
            pub $field: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl $table {
            /// Fills the table with the addresses that `address` returns.
            ///
            /// # Errors
            /// The error of `address` for the first missing name.
            ///
            /// # Safety
            /// The result of `address` for a name must be the C function of that name and of the type in this table,
            /// and stay loaded for as long as the process runs.
            pub unsafe fn find(
                mut address: impl FnMut(&'static CStr) -> Result<NonNull<c_void>, String>,
            ) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        let name = const {
                            match CStr::from_bytes_with_nul(concat!(stringify!($symbol), "\0").as_bytes()) {
                                Ok(name) => name,
                                Err(_) => panic!("no name contains a NUL byte"),
                            }
                        };
                        let found = address(name)?.as_ptr();
                        // SAFETY: the caller guarantees a function of this type at the address, and a function's
                        // address has the size of a pointer on all supported systems.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $answer)?>(found)
                        }
                    },)*
                })
            }
        }
    };
}

calls! {
    /// CoreFoundation: access to the containers of IOReport.
    CoreFoundationFunctions {
        CFRelease as release: fn(CfRef);
        CFGetTypeID as type_id: fn(CfRef) -> usize;
        CFStringGetTypeID as string_type_id: fn() -> usize;
        CFArrayGetTypeID as array_type_id: fn() -> usize;
        CFDictionaryGetTypeID as dictionary_type_id: fn() -> usize;
        CFDataGetTypeID as data_type_id: fn() -> usize;
        CFStringCreateWithBytes as string_create: fn(CfRef, *const u8, isize, u32, u8) -> CfRef;
        CFStringGetCString as string_read: fn(CfRef, *mut c_char, isize, u32) -> u8;
        CFDictionaryGetValue as dictionary_get: fn(CfRef, CfRef) -> CfRef;
        CFDictionaryCreateMutableCopy as dictionary_copy: fn(CfRef, isize, CfRef) -> CfRef;
        CFDictionarySetValue as dictionary_set: fn(CfRef, CfRef, CfRef);
        CFArrayGetCount as array_count: fn(CfRef) -> isize;
        CFArrayGetValueAtIndex as array_get: fn(CfRef, isize) -> CfRef;
        CFArrayCreateMutableCopy as array_copy: fn(CfRef, isize, CfRef) -> CfRef;
        CFArrayRemoveValueAtIndex as array_remove: fn(CfRef, isize);
        CFDataGetLength as data_length: fn(CfRef) -> isize;
        CFDataGetBytePtr as data_bytes: fn(CfRef) -> *const u8;
    }
}

calls! {
    /// IOReport (`/usr/lib/libIOReport.dylib`), which Apple does not document.
    IoReportFunctions {
        IOReportCopyChannelsInGroup as copy_channels: fn(CfRef, CfRef, u64, u64, u64) -> CfRef;
        IOReportCreateSubscription as subscribe: fn(CfRef, CfRef, *mut CfRef, u64, CfRef) -> CfRef;
        IOReportCreateSamples as sample: fn(CfRef, CfRef, CfRef) -> CfRef;
        IOReportChannelGetChannelName as name_of: fn(CfRef) -> CfRef;
        IOReportChannelGetUnitLabel as unit_of: fn(CfRef) -> CfRef;
        IOReportChannelGetFormat as format_of: fn(CfRef) -> i32;
        IOReportSimpleGetIntegerValue as value_of: fn(CfRef, i32) -> i64;
    }
}

calls! {
    /// IOKit and Mach: access to the System Management Controller, and the length of a tick.
    IoKitFunctions {
        IOServiceMatching as matching: fn(*const c_char) -> CfRef;
        IOServiceGetMatchingServices as services: fn(MachPort, CfRef, *mut MachPort) -> i32;
        IOIteratorNext as next: fn(MachPort) -> MachPort;
        IORegistryEntryGetName as name_of: fn(MachPort, *mut c_char) -> i32;
        IOObjectRelease as release: fn(MachPort) -> i32;
        IOServiceOpen as open: fn(MachPort, MachPort, u32, *mut MachPort) -> i32;
        IOServiceClose as close: fn(MachPort) -> i32;
        IOConnectCallStructMethod as call: fn(MachPort, u32, *const c_void, usize, *mut c_void, *mut usize) -> i32;
        mach_timebase_info as timebase: fn(*mut [u32; 2]) -> i32;
    }
}

/// All functions, and this process's own port, which IOKit needs.
#[derive(Clone, Copy)]
pub struct AppleFunctions {
    pub foundation: CoreFoundationFunctions,
    /// IOKit and Mach.
    pub kit: IoKitFunctions,
    /// `mach_task_self()`, which is a variable.
    pub task: MachPort,
    /// IOReport, or the reason why it is unavailable.
    pub report: Result<IoReportFunctions, &'static str>,
}
